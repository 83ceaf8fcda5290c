package cli

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cpuPeriod is the period in microseconds that CPU quotas are given for.
const cpuPeriod = 100_000

// Labels by which tools of Kubernetes recognise pods and containers.
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"
)

// runOptions are the flags of run.
type runOptions struct {
	sessionFlags
	limitFlags

	detach, remove bool
	pull           string
	grace          time.Duration
	creds          credentialFlags

	name, namespace, hostname, workdir, user, entrypoint, handler, logDir string

	env, envFiles, volumes, ports, labels, annotations  []string
	dns, dnsSearch, dnsOptions, sysctls                 []string
	devices, capAdd, capDrop, groups, security          []string
	hostNetwork, hostPID, hostIPC, privileged, readOnly bool
	network, pid                                        string
}

func (o *runOptions) add(cmd *cobra.Command) {
	f := cmd.Flags()
	o.sessionFlags.add(cmd)
	f.BoolVarP(&o.detach, "detach", "d", false, "run in the background and print the container ID")
	f.BoolVar(&o.remove, "rm", false, "remove pod, container and logs when the container exits")
	f.StringVar(&o.pull, "pull", pullMissing, "pull `POLICY`: missing, always or never")
	o.creds.add(cmd)
	f.StringVar(&o.name, "name", "", "`NAME` of the pod and its container (default: generated)")
	f.StringVar(&o.namespace, "namespace", "default", "`NAMESPACE` of the pod")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "label of pod and container as `KEY=VALUE`")
	f.StringArrayVar(&o.annotations, "annotation", nil, "annotation of the pod as `KEY=VALUE`")
	f.StringVar(&o.handler, "runtime", "", "runtime `HANDLER`, such as crun or runc (default: the daemon's)")
	f.StringVar(&o.logDir, "log-dir", "/var/log/berth", "parent `DIR` of the log directories")
	f.Var(newSeconds(&o.grace, defaultGrace), "grace", "`SECONDS`, or a duration such as 1m, between SIGTERM and SIGKILL on Ctrl-C")

	f.StringVar(&o.entrypoint, "entrypoint", "", "`PROGRAM` that replaces the image's entrypoint")
	f.StringArrayVarP(&o.env, "env", "e", nil, "environment variable as `NAME=VALUE`, or NAME to pass on the caller's value")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "`FILE` of environment variables, one NAME=VALUE per line")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working directory `DIR`")
	f.StringVarP(&o.user, "user", "u", "", "`USER` as UID, UID:GID or NAME")
	f.StringArrayVar(&o.groups, "group-add", nil, "supplementary group as `GID`")

	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "bind mount as `SOURCE:TARGET`[:ro,rro,rslave,rshared,z]")
	f.StringArrayVar(&o.devices, "device", nil, "device as `HOST`[:CONTAINER[:rwm]]")
	f.BoolVar(&o.readOnly, "read-only", false, "mount the root file system read-only")

	f.StringArrayVarP(&o.ports, "publish", "p", nil, "published port as `[ADDRESS:]HOSTPORT:PORT[/udp]`")
	f.BoolVar(&o.hostNetwork, "host-network", false, "use the host's network namespace")
	f.StringVar(&o.network, "network", "", "`MODE`: host, the same as --host-network")
	f.StringVar(&o.hostname, "hostname", "", "`HOSTNAME` of the pod (default: its name)")
	f.StringArrayVar(&o.dns, "dns", nil, "name server `ADDRESS`")
	f.StringArrayVar(&o.dnsSearch, "dns-search", nil, "search `DOMAIN`")
	f.StringArrayVar(&o.dnsOptions, "dns-option", nil, "resolver `OPTION`")

	o.limitFlags.add(f)

	f.StringArrayVar(&o.capAdd, "cap-add", nil, "`CAPABILITY` to add, or ALL")
	f.StringArrayVar(&o.capDrop, "cap-drop", nil, "`CAPABILITY` to drop, or ALL")
	f.StringArrayVar(&o.security, "security-opt", nil, "security `OPTION`: no-new-privileges, seccomp=PROFILE or apparmor=PROFILE")
	f.BoolVar(&o.privileged, "privileged", false, "privileged: all capabilities and host devices")
	f.StringArrayVar(&o.sysctls, "sysctl", nil, "sysctl of the pod as `KEY=VALUE`")
	f.StringVar(&o.pid, "pid", "", "`MODE`: host, which uses the host's PID namespace")
	f.BoolVar(&o.hostIPC, "host-ipc", false, "use the host's IPC namespace")
	f.SetInterspersed(false) // what follows the image is the command's
}

// check refuses what cannot go together, before anything is asked of anybody.
func (o *runOptions) check() error {
	switch {
	case o.detach && o.remove:
		return errors.New("--rm and --detach exclude each other: --rm removes the pod when berth run returns")
	case o.pull != pullMissing && o.pull != pullAlways && o.pull != pullNever:
		return fmt.Errorf("--pull %q: want missing, always or never", o.pull)
	case o.network != "" && o.network != "host":
		return fmt.Errorf("--network %q: want host; other networks are configured per node, see: berth config default", o.network)
	case o.pid != "" && o.pid != "host":
		return fmt.Errorf("--pid %q: want host", o.pid)
	}
	o.hostNetwork = o.hostNetwork || o.network == "host"
	o.hostPID = o.pid == "host"
	if o.hostNetwork && len(o.ports) > 0 {
		return errors.New("--publish and --host-network exclude each other: the container listens on the host itself")
	}
	if o.name == "" {
		o.name = makeName()
	}
	return errors.Join(checkName("--name", o.name), checkName("--namespace", o.namespace))
}

// pod returns the configuration of the pod.
func (o *runOptions) pod() (*runtimeapi.PodSandboxConfig, error) {
	meta := &runtimeapi.PodSandboxMetadata{Name: o.name, Uid: uuid.NewString(), Namespace: o.namespace}
	dir := filepath.Join(o.logDir, logDirName(meta))
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("--log-dir %q: want an absolute path", o.logDir)
	}
	labels, err := parsePairs("--label", o.labels)
	if err != nil {
		return nil, err
	}
	labels[labelPodName], labels[labelPodNamespace], labels[labelPodUID] = meta.Name, meta.Namespace, meta.Uid
	annotations, err := parsePairs("--annotation", o.annotations)
	if err != nil {
		return nil, err
	}
	annotations[logDirAnnotation] = dir
	sysctls, err := parsePairs("--sysctl", o.sysctls)
	if err != nil {
		return nil, err
	}
	pod := &runtimeapi.PodSandboxConfig{
		Metadata: meta, Hostname: o.podHostname(), LogDirectory: dir, Labels: labels, Annotations: annotations,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			Sysctls: sysctls,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: o.namespaces(), Privileged: o.privileged,
				Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
	if len(o.dns)+len(o.dnsSearch)+len(o.dnsOptions) > 0 {
		pod.DnsConfig = &runtimeapi.DNSConfig{Servers: o.dns, Searches: o.dnsSearch, Options: o.dnsOptions}
	}
	for _, text := range o.ports {
		m, err := parsePort(text)
		if err != nil {
			return nil, err
		}
		pod.PortMappings = append(pod.PortMappings, m)
	}
	return pod, nil
}

// podHostname is the name within the pod; the host's network comes with the
// host's name.
func (o *runOptions) podHostname() string {
	if o.hostname != "" || o.hostNetwork {
		return o.hostname
	}
	return strings.Trim(strings.NewReplacer("_", "-", ".", "-").Replace(strings.ToLower(o.name)), "-")
}

func (o *runOptions) namespaces() *runtimeapi.NamespaceOption {
	out := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	if o.hostNetwork {
		out.Network = runtimeapi.NamespaceMode_NODE
	}
	if o.hostPID {
		out.Pid = runtimeapi.NamespaceMode_NODE
	}
	if o.hostIPC {
		out.Ipc = runtimeapi.NamespaceMode_NODE
	}
	return out
}

// container returns the configuration of the container.
func (o *runOptions) container(ref, imageID string, command []string, pod *runtimeapi.PodSandboxConfig) (*runtimeapi.ContainerConfig, error) {
	labels := map[string]string{labelContainerName: o.name}
	maps.Copy(labels, pod.Labels)
	linux, err := o.linux()
	if err != nil {
		return nil, err
	}
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: o.name},
		Image:    &runtimeapi.ImageSpec{Image: imageID, UserSpecifiedImage: ref},
		Args:     command, WorkingDir: o.workdir, Labels: labels,
		LogPath: o.name + "_0.log", Tty: o.tty, Stdin: o.interactive,
		StdinOnce: o.interactive && !o.detach, Linux: linux,
	}
	if o.entrypoint != "" {
		c.Command = []string{o.entrypoint}
	}
	if err := o.environment(c); err != nil {
		return nil, err
	}
	for _, text := range o.volumes {
		m, err := parseMount(text)
		if err != nil {
			return nil, err
		}
		c.Mounts = append(c.Mounts, m)
	}
	for _, text := range o.devices {
		d, err := parseDevice(text)
		if err != nil {
			return nil, err
		}
		c.Devices = append(c.Devices, d)
	}
	return c, nil
}

func (o *runOptions) environment(c *runtimeapi.ContainerConfig) error {
	texts := []string{}
	if o.tty {
		texts = append(texts, "TERM=xterm")
	}
	for _, file := range o.envFiles {
		lines, err := readEnvFile(file)
		if err != nil {
			return err
		}
		texts = append(texts, lines...)
	}
	for _, text := range append(texts, o.env...) {
		kv, err := parseEnv(text)
		if err != nil {
			return err
		}
		if kv != nil {
			c.Envs = append(c.Envs, kv)
		}
	}
	return nil
}

// makeName makes up a name that is easy to type and to tell from others.
func makeName() string {
	first := []string{"amber", "brisk", "calm", "deft", "early", "fair", "glad", "keen", "lucid", "mild", "neat", "quick", "rapid", "sober", "tidy", "warm"}
	second := []string{"anchor", "buoy", "canvas", "dinghy", "ferry", "gull", "harbor", "jetty", "keel", "lagoon", "mast", "oar", "pier", "reef", "sail", "tide"}
	//nolint:gosec // a name is no secret
	return fmt.Sprintf("%s-%s-%04x", first[rand.IntN(len(first))], second[rand.IntN(len(second))], rand.IntN(1<<16))
}
