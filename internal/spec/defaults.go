package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/internal/warning"
)

// Defaults are what pods and containers get unless their request says otherwise: the table [pod] of the configuration, read
// and checked once. The zero value has no sysctls, limits and variables, and the built-in capabilities and profiles.
type Defaults struct {
	// ShmBytes is the size of /dev/shm.
	ShmBytes int64
	// Localtime is the content of /etc/localtime for the time zone Timezone; empty leaves that of the image.
	Localtime []byte
	Timezone  string
	// Hooks run in the life of containers; nil means none.
	Hooks Hooks

	sysctls      []defaultSysctl
	rlimits      []specs.POSIXRlimit
	rlimitsText  string // of rlimits, as they are configured
	capabilities []string
	env          []string
	// seccomp is for containers that ask for RuntimeDefault, unset for those that ask for nothing.
	seccomp, unset seccompDefault
	deviceOwner    bool
	passwdEntry    bool
}

// Hooks adds programs to a spec that the OCI runtime runs in the life of a container, and returns the names of their files.
type Hooks interface {
	Inject(result *specs.Spec, annotations map[string]string, hasMounts bool) []string
}

// seccompDefault is a profile by name. One without a name is none; one without a file is the built-in one.
type seccompDefault struct {
	name string
	file *profileFile
}

// builtinProfile is the name of the profile that comes with Berth.
const builtinProfile = "built-in"

type defaultSysctl struct {
	name, value, path string
	owner             namespace.Owner
}

// SettingError is a default that this host cannot give.
type SettingError struct {
	// Key is the name of the setting in the table [pod].
	Key string
	// Problem names the value and the reason.
	Problem string
}

func (e *SettingError) Error() string { return e.Key + " " + e.Problem }

// ReadDefaults reads the files that a valid table [pod] names, and checks it against this host, to which it adds the default
// AppArmor profile. The error is a *SettingError if the table is to blame. What this
// host has less of than was asked for is a warning.
func ReadDefaults(table config.Pod, host *Host) (*Defaults, warning.List, error) {
	var warnings warning.List
	d := &Defaults{
		ShmBytes: table.ShmBytes(), env: table.Env, deviceOwner: table.DeviceOwner, passwdEntry: table.PasswdEntry,
		capabilities: []string{},
	}
	for _, text := range table.Capabilities {
		name, ok := capabilityName(text)
		if !ok {
			return nil, nil, &SettingError{"capabilities", fmt.Sprintf("%q is not a capability", text)}
		}
		d.capabilities = append(d.capabilities, name)
	}
	d.capabilities = slices.Compact(sorted(d.capabilities))
	err := errors.Join(
		d.readSysctls(table.Sysctls, &warnings),
		d.readUlimits(table.Ulimits, &warnings),
		d.readProfiles(table),
		readAppArmorDefault(table.AppArmorProfile, host, &warnings),
		d.readTimezone(table.Timezone, &warnings),
	)
	if err != nil {
		return nil, nil, err
	}
	return d, warnings, nil
}

// pingGroups is the sysctl of the groups that may ping. A user namespace has not all of them.
const pingGroups = "net.ipv4.ping_group_range"

// readSysctls refuses sysctls that are not separate for each pod. One that the kernel does not have is left out: pods would
// fail by it.
func (d *Defaults) readSysctls(sysctls map[string]string, warnings *warning.List) error {
	mapped, err := inUserNamespace()
	if err != nil {
		return err
	}
	for name, value := range sysctls {
		owner, err := namespace.SysctlOwner(name)
		if err != nil {
			return &SettingError{"sysctls", err.Error()}
		}
		s := defaultSysctl{name: name, value: value, path: namespace.SysctlPath(name), owner: owner}
		switch {
		case !namespace.OfLink(name) && !exists(s.path):
			warnings.Add("pod.sysctls", name, "is left out: this kernel has no such sysctl")
		case mapped && s.path == namespace.SysctlPath(pingGroups):
			warnings.Add("pod.sysctls", name, "is left out: the daemon runs in a user namespace")
		default:
			d.sysctls = append(d.sysctls, s)
		}
	}
	slices.SortFunc(d.sysctls, func(a, b defaultSysctl) int { return strings.Compare(a.name, b.name) })
	return nil
}

// inUserNamespace tells whether this process has not all IDs.
func inUserNamespace() (bool, error) {
	data, err := os.ReadFile("/proc/self/uid_map")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // a kernel without user namespaces
	}
	if err != nil {
		return false, fmt.Errorf("read own ID mapping: %w", err)
	}
	return strings.Join(strings.Fields(string(data)), " ") != "0 0 4294967295", nil
}

func (d *Defaults) readProfiles(table config.Pod) (err error) {
	if d.seccomp, err = readSeccompDefault("seccomp_profile", table.SeccompProfile); err != nil {
		return err
	}
	switch file, local := strings.CutPrefix(table.UnsetSeccompProfile, config.ProfileLocalhost); {
	case local:
		d.unset, err = readSeccompDefault("unset_seccomp_profile", file)
	case table.UnsetSeccompProfile == config.ProfileDefault:
		d.unset = d.seccomp
	}
	return err
}

func readSeccompDefault(key, file string) (seccompDefault, error) {
	if file == "" {
		return seccompDefault{name: builtinProfile}, nil
	}
	data, err := readProfile(file)
	var profile *profileFile
	if err == nil {
		profile, err = decodeProfile(data)
	}
	if err == nil {
		_, err = profile.resolve(nil)
	}
	if err != nil {
		return seccompDefault{}, &SettingError{key, fmt.Sprintf("%q: %v", file, err)}
	}
	return seccompDefault{file, profile}, nil
}

// readAppArmorDefault makes a loaded profile the host's default.
func readAppArmorDefault(name string, host *Host, warnings *warning.List) error {
	if name == "" {
		return nil
	}
	if !host.AppArmor {
		warnings.Add("pod.apparmor_profile", name, "is ignored: AppArmor is not enabled on this host")
		return nil
	}
	loaded, err := host.profileLoaded(name)
	if err != nil {
		return err
	}
	if !loaded {
		return &SettingError{"apparmor_profile", fmt.Sprintf("%q: no AppArmor profile of this name is loaded", name)}
	}
	host.AppArmorDefault = name
	return nil
}

// Sysctls returns the sysctls of a pod: those of its request, and the defaults of the namespaces that it has. The request is
// not changed.
func (d *Defaults) Sysctls(pod *runtimeapi.PodSandboxConfig) (all, added map[string]string) {
	asked := pod.GetLinux().GetSysctls()
	if len(d.sysctls) == 0 {
		return asked, nil
	}
	all, added = make(map[string]string, len(asked)+len(d.sysctls)), map[string]string{}
	paths := make(map[string]bool, len(asked))
	for name, value := range asked {
		all[name], paths[namespace.SysctlPath(name)] = value, true
	}
	shared := pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	owned := map[namespace.Owner]bool{
		namespace.OwnerNet: shared.GetNetwork() == modePod, namespace.OwnerUTS: shared.GetNetwork() == modePod,
		namespace.OwnerIPC: shared.GetIpc() == modePod,
	}
	_, _, mapped := UserNamespace(pod)
	for _, s := range d.sysctls {
		if owned[s.owner] && !paths[s.path] && (!mapped || s.path != namespace.SysctlPath(pingGroups)) {
			all[s.name], added[s.name] = s.value, s.value
		}
	}
	return all, added
}
