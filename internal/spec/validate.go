package spec

import (
	"fmt"
	"math"
	"path"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxID is the largest user or group ID; the next one means "none" to the
// kernel.
const maxID = math.MaxUint32 - 1

// Validate checks everything about a container that can be refused from the
// request alone, which is in canonical form. The error is of kind errdefs.ErrInvalidArgument and names
// field, value and reason.
func Validate(config *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	if config == nil {
		return invalid("config", "", "must be given")
	}
	if pod == nil {
		return invalid("sandbox_config", "", "must be given")
	}
	if config.GetMetadata().GetName() == "" {
		return invalid("metadata.name", "", "must not be empty")
	}
	if err := checkName("metadata.name", config.GetMetadata().GetName()); err != nil {
		return err
	}
	if config.GetImage().GetImage() == "" {
		return invalid("image.image", "", "must not be empty")
	}
	checks := []func(*runtimeapi.ContainerConfig, *runtimeapi.PodSandboxConfig) error{
		validateBounds, validateProcess, validateLog, validateMounts, validateDevices,
		validateSecurity, validateNamespaces,
	}
	for _, check := range checks {
		if err := check(config, pod); err != nil {
			return err
		}
	}
	return validateResources("linux.resources", config.GetLinux().GetResources())
}

func validateBounds(config *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) error {
	return checkContainerBounds(config)
}

func validateProcess(config *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) error {
	for i, word := range config.GetCommand() {
		if err := checkText(fmt.Sprintf("command[%d]", i), word); err != nil {
			return err
		}
	}
	for i, word := range config.GetArgs() {
		if err := checkText(fmt.Sprintf("args[%d]", i), word); err != nil {
			return err
		}
	}
	if dir := config.GetWorkingDir(); dir != "" {
		if err := checkAbsolute("working_dir", dir); err != nil {
			return err
		}
	}
	for i, env := range config.GetEnvs() {
		field := fmt.Sprintf("envs[%d].key", i)
		if env.GetKey() == "" || strings.Contains(env.GetKey(), "=") {
			return invalid(field, env.GetKey(), "must not be empty or contain '='")
		}
		if err := checkText(field, env.GetKey()); err != nil {
			return err
		}
		// The value may be a secret, so the error does not show it.
		if checkText("", string(env.GetValue())) != nil {
			return invalid(fmt.Sprintf("envs[%d].value", i), "of "+env.GetKey(), "must be UTF-8 without NUL bytes")
		}
	}
	return nil
}

func validateLog(config *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) error {
	file := config.GetLogPath()
	if file == "" {
		return nil
	}
	if err := checkText("log_path", file); err != nil {
		return err
	}
	if path.IsAbs(file) || hasDotDot(file) || path.Clean(file) == "." {
		return invalid("log_path", file, "must be relative to log_directory and stay below it")
	}
	return checkElements("log_path", file)
}

func validateMounts(config *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	for i, mount := range config.GetMounts() {
		field := fmt.Sprintf("mounts[%d]", i)
		if err := validateMount(field, mount); err != nil {
			return err
		}
		if err := validateMapping(field, mount, pod); err != nil {
			return err
		}
	}
	return nil
}

func validateMount(field string, mount *runtimeapi.Mount) error {
	target := mount.GetContainerPath()
	if err := checkAbsolute(field+".container_path", target); err != nil {
		return err
	}
	if path.Clean(target) == "/" {
		return invalid(field+".container_path", target, "must be below /")
	}
	if err := validateMountSource(field, mount); err != nil {
		return err
	}
	if mount.GetRecursiveReadOnly() {
		if !mount.GetReadonly() {
			return invalid(field+".recursive_read_only", true, "needs readonly")
		}
		if mount.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			return invalid(field+".recursive_read_only", true, "needs propagation PROPAGATION_PRIVATE")
		}
	}
	for _, option := range mount.GetMountOptions() {
		if _, ok := mountOptions[option]; !ok {
			return invalid(field+".mount_options", option, "is not an option for bind mounts that Berth knows")
		}
		if option == "rw" && mount.GetReadonly() {
			return invalid(field+".mount_options", option, "contradicts readonly")
		}
	}
	return nil
}

func validateMountSource(field string, mount *runtimeapi.Mount) error {
	if mount.GetImage() == nil {
		return checkAbsolute(field+".host_path", mount.GetHostPath())
	}
	if mount.GetHostPath() != "" {
		return invalid(field+".host_path", mount.GetHostPath(), "must be empty beside image")
	}
	if mount.GetImage().GetImage() == "" {
		return invalid(field+".image.image", "", "must not be empty")
	}
	if !mount.GetReadonly() {
		return invalid(field+".readonly", false, "must be true for an image")
	}
	sub := mount.GetImageSubPath()
	if path.IsAbs(sub) || hasDotDot(sub) {
		return invalid(field+".image_sub_path", sub, "must be relative and must not contain \"..\"")
	}
	return checkText(field+".image_sub_path", sub)
}

func validateDevices(config *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) error {
	for i, device := range config.GetDevices() {
		field := fmt.Sprintf("devices[%d]", i)
		if err := checkAbsolute(field+".container_path", device.GetContainerPath()); err != nil {
			return err
		}
		if err := checkAbsolute(field+".host_path", device.GetHostPath()); err != nil {
			return err
		}
		if strings.Trim(device.GetPermissions(), "rwm") != "" {
			return invalid(field+".permissions", device.GetPermissions(), "must consist of r, w and m")
		}
	}
	return validateCDI(config)
}

func validateSecurity(config *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	const field = "linux.security_context"
	sc := config.GetLinux().GetSecurityContext()
	if err := validateUser(field, sc); err != nil {
		return err
	}
	if sc.GetPrivileged() && !pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return invalid(field+".privileged", true, "needs privileged in the security context of the sandbox")
	}
	for _, list := range []struct {
		name  string
		paths []string
	}{{"masked_paths", sc.GetMaskedPaths()}, {"readonly_paths", sc.GetReadonlyPaths()}} {
		for i, p := range list.paths {
			if err := checkAbsolute(fmt.Sprintf("%s.%s[%d]", field, list.name, i), p); err != nil {
				return err
			}
		}
	}
	if err := validateCapabilities(field+".capabilities", sc.GetCapabilities()); err != nil {
		return err
	}
	return validateProfile(field+".seccomp", sc.GetSeccomp())
}

func validateUser(field string, sc *runtimeapi.LinuxContainerSecurityContext) error {
	hasUser := sc.GetRunAsUser() != nil
	if sc.GetRunAsGroup() != nil && !hasUser && sc.GetRunAsUsername() == "" {
		return invalid(field+".run_as_group", sc.GetRunAsGroup().GetValue(), "needs run_as_user or run_as_username")
	}
	if err := checkRange(field+".run_as_user", sc.GetRunAsUser().GetValue(), 0, maxID); err != nil {
		return err
	}
	if err := checkRange(field+".run_as_group", sc.GetRunAsGroup().GetValue(), 0, maxID); err != nil {
		return err
	}
	for i, group := range sc.GetSupplementalGroups() {
		if err := checkRange(fmt.Sprintf("%s.supplemental_groups[%d]", field, i), group, 0, maxID); err != nil {
			return err
		}
	}
	policy := sc.GetSupplementalGroupsPolicy()
	if _, ok := runtimeapi.SupplementalGroupsPolicy_name[int32(policy)]; !ok {
		return invalid(field+".supplemental_groups_policy", int32(policy), "is unknown")
	}
	return nil
}

// validateProfile checks a seccomp profile as far as the request goes.
func validateProfile(field string, profile *runtimeapi.SecurityProfile) error {
	switch profile.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined:
		return nil
	case runtimeapi.SecurityProfile_Localhost:
		return checkAbsolute(field+".localhost_ref", profile.GetLocalhostRef())
	default:
		return invalid(field+".profile_type", int32(profile.GetProfileType()), "is unknown")
	}
}
