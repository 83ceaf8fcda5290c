package spec

import (
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The limits of what a request or an image may list. They are far above what Kubernetes sends, and keep
// the work of one request small.
const (
	// maxWords bounds command, arguments and environment, maxWordBytes their size together. The kernel
	// accepts at most 6 MiB.
	maxWords     = 100_000
	maxWordBytes = 8 << 20
	// maxMounts bounds mounts: a mount namespace has at most 100,000 by default.
	maxMounts = 10_000
	// maxItems bounds lists of devices, ports, sysctls and the like.
	maxItems = 10_000
	// maxVolumes bounds the volumes of an image, each of which is a mount.
	maxVolumes = 256
	// maxMappings is how many ID mappings a user namespace takes.
	maxMappings = 340
	// maxTags bounds the number of labels or annotations of an object, maxTagBytes their size. Kubernetes
	// allows 256 KiB of annotations.
	maxTags     = 10_000
	maxTagBytes = 2 << 20
	// maxValue bounds a single string that has no limit of its own.
	maxValue = 64 << 10
)

// bound is a list of a request with its limit.
type bound struct {
	field        string
	count, limit int
}

// checkBounds refuses the first list that is longer than its limit.
func checkBounds(bounds ...bound) error {
	for _, b := range bounds {
		if b.count > b.limit {
			return invalid(b.field, fmt.Sprintf("with %d entries", b.count), fmt.Sprintf("has more than %d", b.limit))
		}
	}
	return nil
}

// checkSize refuses values that are too large together.
func checkSize(field string, bytes, limit int) error {
	if bytes > limit {
		return invalid(field, fmt.Sprintf("with %d bytes", bytes), fmt.Sprintf("has more than %d", limit))
	}
	return nil
}

// checkTags bounds the labels or annotations of an object.
func checkTags(field string, tags map[string]string) error {
	if err := checkBounds(bound{field, len(tags), maxTags}); err != nil {
		return err
	}
	bytes := 0
	for key, value := range tags {
		bytes += len(key) + len(value)
	}
	return checkSize(field, bytes, maxTagBytes)
}

func sizeOf(words []string) (bytes int) {
	for _, word := range words {
		bytes += len(word) + 1
	}
	return bytes
}

// checkContainerBounds refuses a request for a container that lists too much.
func checkContainerBounds(config *runtimeapi.ContainerConfig) error {
	sc, resources := config.GetLinux().GetSecurityContext(), config.GetLinux().GetResources()
	capabilities := sc.GetCapabilities()
	const security = "linux.security_context."
	err := checkBounds(
		bound{"command", len(config.GetCommand()), maxWords}, bound{"args", len(config.GetArgs()), maxWords},
		bound{"envs", len(config.GetEnvs()), maxWords}, bound{"mounts", len(config.GetMounts()), maxMounts},
		bound{"devices", len(config.GetDevices()), maxItems}, bound{"CDI_devices", len(config.GetCDIDevices()), maxItems},
		bound{security + "supplemental_groups", len(sc.GetSupplementalGroups()), maxGroups},
		bound{security + "masked_paths", len(sc.GetMaskedPaths()), maxItems},
		bound{security + "readonly_paths", len(sc.GetReadonlyPaths()), maxItems},
		bound{security + "capabilities.add_capabilities", len(capabilities.GetAddCapabilities()), maxItems},
		bound{security + "capabilities.drop_capabilities", len(capabilities.GetDropCapabilities()), maxItems},
		bound{security + "capabilities.add_ambient_capabilities", len(capabilities.GetAddAmbientCapabilities()), maxItems},
	)
	if err != nil {
		return err
	}
	for i, mount := range config.GetMounts() {
		field := fmt.Sprintf("mounts[%d].", i)
		err := checkBounds(
			bound{field + "uidMappings", len(mount.GetUidMappings()), maxMappings}, bound{field + "gidMappings", len(mount.GetGidMappings()), maxMappings},
			bound{field + "mount_options", len(mount.GetMountOptions()), maxItems},
		)
		if err != nil {
			return err
		}
	}
	env := 0
	for _, entry := range config.GetEnvs() {
		env += len(entry.GetKey()) + len(entry.GetValue()) + 2
	}
	for _, check := range []error{
		checkSize("command and args", sizeOf(config.GetCommand())+sizeOf(config.GetArgs()), maxWordBytes),
		checkSize("envs", env, maxWordBytes),
		checkSize("image.user_specified_image", len(config.GetImage().GetUserSpecifiedImage()), maxValue),
		checkTags("labels", config.GetLabels()), checkTags("annotations", config.GetAnnotations()),
		checkTags("image.annotations", config.GetImage().GetAnnotations()),
		checkResourceBounds("linux.resources", resources),
	} {
		if check != nil {
			return check
		}
	}
	return nil
}

func checkResourceBounds(field string, r *runtimeapi.LinuxContainerResources) error {
	err := checkBounds(
		bound{field + ".hugepage_limits", len(r.GetHugepageLimits()), maxItems}, bound{field + ".unified", len(r.GetUnified()), maxItems},
	)
	for _, set := range []struct{ name, value string }{{".cpuset_cpus", r.GetCpusetCpus()}, {".cpuset_mems", r.GetCpusetMems()}} {
		if err == nil {
			err = checkSize(field+set.name, len(set.value), maxValue)
		}
	}
	return err
}

// checkSandboxBounds refuses a request for a pod that lists too much.
func checkSandboxBounds(pod *runtimeapi.PodSandboxConfig) error {
	sc, dns := pod.GetLinux().GetSecurityContext(), pod.GetDnsConfig()
	users := sc.GetNamespaceOptions().GetUsernsOptions()
	const security = "linux.security_context."
	err := checkBounds(
		bound{"dns_config.servers", len(dns.GetServers()), maxItems}, bound{"dns_config.searches", len(dns.GetSearches()), maxItems},
		bound{"dns_config.options", len(dns.GetOptions()), maxItems}, bound{"port_mappings", len(pod.GetPortMappings()), maxItems},
		bound{"linux.sysctls", len(pod.GetLinux().GetSysctls()), maxItems},
		bound{security + "supplemental_groups", len(sc.GetSupplementalGroups()), maxGroups},
		bound{security + "namespace_options.userns_options.uids", len(users.GetUids()), maxMappings},
		bound{security + "namespace_options.userns_options.gids", len(users.GetGids()), maxMappings},
	)
	for _, check := range []error{
		err, checkTags("labels", pod.GetLabels()), checkTags("annotations", pod.GetAnnotations()), checkTags("linux.sysctls", pod.GetLinux().GetSysctls()),
		checkSize("dns_config", sizeOf(dns.GetServers())+sizeOf(dns.GetSearches())+sizeOf(dns.GetOptions()), maxTagBytes),
		checkResourceBounds("linux.resources", pod.GetLinux().GetResources()), checkResourceBounds("linux.overhead", pod.GetLinux().GetOverhead()),
	} {
		if check != nil {
			return check
		}
	}
	return nil
}

// CheckImage refuses the configuration of an image that lists too much. The error is of kind
// errdefs.ErrInvalidArgument and names field, value and limit.
func CheckImage(config ocispec.ImageConfig) error {
	err := checkBounds(
		bound{"Env of the image", len(config.Env), maxWords}, bound{"Entrypoint of the image", len(config.Entrypoint), maxWords},
		bound{"Cmd of the image", len(config.Cmd), maxWords}, bound{"Volumes of the image", len(config.Volumes), maxVolumes},
		bound{"ExposedPorts of the image", len(config.ExposedPorts), maxItems},
	)
	for _, check := range []error{
		err, checkTags("Labels of the image", config.Labels), checkSize("Env of the image", sizeOf(config.Env), maxWordBytes),
		checkSize("Entrypoint and Cmd of the image", sizeOf(config.Entrypoint)+sizeOf(config.Cmd), maxWordBytes),
		checkSize("User of the image", len(config.User), maxValue), checkSize("WorkingDir of the image", len(config.WorkingDir), maxValue),
	} {
		if check != nil {
			return check
		}
	}
	return nil
}

// CheckCommand refuses a command that is too long for any process.
func CheckCommand(field string, words []string) error {
	if err := checkBounds(bound{field, len(words), maxWords}); err != nil {
		return err
	}
	return checkSize(field, sizeOf(words), maxWordBytes)
}
