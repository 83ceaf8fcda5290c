package config

import (
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The values of Pod.UnsetSeccompProfile that are no path.
const (
	// ProfileUnconfined runs a container without a seccomp filter.
	ProfileUnconfined = "unconfined"
	// ProfileDefault is the profile that a container gets which asks for the runtime's default.
	ProfileDefault = "runtime/default"
	// ProfileLocalhost stands before the path of a profile.
	ProfileLocalhost = "localhost/"
)

// TimezoneLocal is the time zone of the host.
const TimezoneLocal = "local"

// Unlimited is the value of a resource limit that does not limit.
const Unlimited = math.MaxUint64

const (
	// maxDefaults bounds each list of defaults, maxDefault one value.
	maxDefaults = 256
	maxDefault  = 4096
	// leastShm is one page.
	leastShm = 4096
)

// Pod is what pods and their containers get unless their request says otherwise.
type Pod struct {
	Sysctls               map[string]string `json:"sysctls"                  toml:"sysctls"`
	Ulimits               []string          `json:"ulimits"                  toml:"ulimits"`
	Capabilities          []string          `json:"capabilities"             toml:"capabilities"`
	Env                   []string          `json:"env"                      toml:"env"`
	Timezone              string            `json:"timezone"                 toml:"timezone"`
	ShmSize               string            `json:"shm_size"                 toml:"shm_size"`
	SeccompProfile        string            `json:"seccomp_profile"          toml:"seccomp_profile"`
	UnsetSeccompProfile   string            `json:"unset_seccomp_profile"    toml:"unset_seccomp_profile"`
	AppArmorProfile       string            `json:"apparmor_profile"         toml:"apparmor_profile"`
	DeviceOwner           bool              `json:"device_owner"             toml:"device_owner"`
	PasswdEntry           bool              `json:"passwd_entry"             toml:"passwd_entry"`
	HooksDir              []string          `json:"hooks_dir"                toml:"hooks_dir"`
	CreateHostPaths       bool              `json:"create_host_paths"        toml:"create_host_paths"`
	CreateHostPathsExcept []string          `json:"create_host_paths_except" toml:"create_host_paths_except"`
}

func defaultPod() Pod {
	return Pod{
		Sysctls: map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "0",
			"net.ipv4.ping_group_range":           "0 2147483647",
		},
		Ulimits: []string{},
		Capabilities: []string{
			"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID",
			"CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP",
			"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
		},
		Env:                   []string{},
		HooksDir:              []string{},
		ShmSize:               "64MiB",
		UnsetSeccompProfile:   ProfileUnconfined,
		CreateHostPaths:       true,
		CreateHostPathsExcept: []string{},
	}
}

func (p Pod) clone() Pod {
	p.Sysctls = maps.Clone(p.Sysctls)
	for _, list := range []*[]string{&p.Ulimits, &p.Capabilities, &p.Env, &p.HooksDir, &p.CreateHostPathsExcept} {
		*list = append([]string{}, *list...)
	}
	return p
}

// ShmBytes is ShmSize of a valid configuration.
func (p Pod) ShmBytes() int64 {
	bytes, err := parseSize(p.ShmSize)
	if err != nil {
		return 0 // Validate has refused it
	}
	return bytes
}

func podSection(p *Pod) section {
	return section{
		name: "pod",
		doc: "What pods and their containers get unless their request says otherwise. berth inspect shows which defaults a pod and\n" +
			"a container got.",
		settings: slices.Concat(podKernelSettings(p), podProcessSettings(p), podSecuritySettings(p), podPathSettings(p)),
	}
}

func podKernelSettings(p *Pod) []setting {
	return []setting{
		{key: "sysctls", value: &p.Sysctls, example: `{ "net.core.somaxconn" = "1024" }`,
			doc: "Sysctls of pods, by name. Only those of a network, IPC or UTS namespace are possible. They are left out for pods that\n" +
				"use that namespace of the host, and net.ipv4.ping_group_range for pods with a user namespace, as by containerd. The\n" +
				"defaults let every user bind any port and ping. What is written here replaces them.",
			check: func() string { return checkSysctls(p.Sysctls) }},
		{key: "shm_size", value: &p.ShmSize, example: `"64MiB"`,
			doc:   "Size of a pod's /dev/shm: a number of bytes, or one with the unit KiB, MiB, GiB or TiB.",
			check: func() string { return checkShmSize(p.ShmSize) }},
		{key: "ulimits", value: &p.Ulimits, example: `["nofile=1024:1048576"]`,
			doc: "Resource limits of containers, each NAME=SOFT:HARD or NAME=LIMIT with numbers or unlimited, such as nofile=65536. Names\n" +
				"are those of ulimit: as, core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime,\n" +
				"sigpending, stack. What is not listed is the same on each host: nofile=1024:1048576, memlock=8388608,\n" +
				"msgqueue=819200, stack=8388608:unlimited, nice=0, rtprio=0, and no limit for the others but sigpending, which is the\n" +
				"kernel's. The limits of the service unit never reach containers. A limit that this host cannot give is lowered, and\n" +
				"the log says so.",
			check: func() string { return checkUlimits(p.Ulimits) }},
	}
}

func podProcessSettings(p *Pod) []setting {
	return []setting{
		{key: "env", value: &p.Env, example: `["HTTP_PROXY=http://proxy.example:3128"]`,
			doc:   "Environment variables of containers, each NAME=VALUE. Those of the image and of the request have precedence.",
			check: func() string { return checkList(p.Env, checkVariable) }},
		{key: "timezone", value: &p.Timezone, example: `"Europe/Berlin"`,
			doc: "Time zone that is mounted read-only on /etc/localtime of containers: a name below /usr/share/zoneinfo of the host, or\n" +
				"local for that of the host. It is read at start. TZ in the environment of a container wins. Empty leaves the time zone\n" +
				"to the image.",
			check: func() string { return checkTimezone(p.Timezone) }},
		{key: "passwd_entry", value: &p.PasswdEntry, example: "true",
			doc: "Whether a container whose user has no entry in /etc/passwd of the image gets one, as by CRI-O: the user ID as its name,\n" +
				"HOME or the working directory as its home. The file is then a mount, so programs cannot replace it by renaming.",
			check: fine},
		{key: "device_owner", value: &p.DeviceOwner, example: "true",
			doc: "Whether the devices that a request lists belong to its run_as_user and run_as_group instead of to their owner on the\n" +
				"host, as device_ownership_from_security_context of containerd and CRI-O has it. In a user namespace they keep their\n" +
				"owner.",
			check: fine},
	}
}

func podSecuritySettings(p *Pod) []setting {
	return []setting{
		{key: "capabilities", value: &p.Capabilities, example: `["CHOWN", "NET_BIND_SERVICE"]`,
			doc:   "Capabilities of containers that are not privileged. A request adds to them and drops from them.",
			check: func() string { return checkList(p.Capabilities, checkWord) }},
		{key: "seccomp_profile", value: &p.SeccompProfile, example: `"/etc/berth/seccomp.json"`,
			doc: "File with the seccomp profile of containers that ask for RuntimeDefault, in the form of Docker or of OCI. It is read at\n" +
				"start. Empty means the built-in profile, which is that of containerd.",
			check: func() string { return checkOptionalDir(p.SeccompProfile) }},
		{key: "unset_seccomp_profile", value: &p.UnsetSeccompProfile, example: `"runtime/default"`,
			doc: "Seccomp profile of containers whose request has none: unconfined, runtime/default, or localhost/ and the path of a\n" +
				"file. Kubelet always asks for one.",
			check: func() string { return checkUnsetProfile(p.UnsetSeccompProfile) }},
		{key: "apparmor_profile", value: &p.AppArmorProfile, example: `"cluster-default"`,
			doc: "Name of the AppArmor profile of containers that ask for RuntimeDefault, which must be loaded. Empty means the built-in\n" +
				"berth-default.",
			check: func() string { return checkProfileName(p.AppArmorProfile) }},
	}
}

func podPathSettings(p *Pod) []setting {
	return []setting{
		{key: "hooks_dir", value: &p.HooksDir, example: `["/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"]`, single: true,
			doc: "Directories of OCI hooks: JSON files in the form 1.0.0 of oci-hooks(5), as CRI-O reads them. A file takes the place of\n" +
				"one with its name in an earlier directory. They are read at start, and may be absent. Directories, files and programs\n" +
				"must belong to root and be writable by root only: the programs run as root on the host. Empty means no hooks.",
			check: func() string { return checkList(p.HooksDir, checkDir) }},
		{key: "create_host_paths", value: &p.CreateHostPaths, example: "true",
			doc:   "Whether a directory of the host that a container mounts is created if it is missing, as by containerd and CRI-O.\nIt belongs to root, and the container has a warning. Else the container is refused.",
			check: fine},
		{key: "create_host_paths_except", value: &p.CreateHostPathsExcept, example: `["/mnt/data"]`,
			doc:   "Directories that are never created, nor anything below them: mount points of disks that may be missing.",
			check: func() string { return checkEach(p.CreateHostPathsExcept, checkDir) }},
	}
}

// checkList checks the length of a list, and each element.
func checkList(values []string, check func(string) string) string {
	if len(values) > maxDefaults {
		return fmt.Sprintf("has %d elements; want at most %d", len(values), maxDefaults)
	}
	return checkEach(values, func(value string) string {
		if len(value) > maxDefault {
			return fmt.Sprintf("has %d bytes; want at most %d", len(value), maxDefault)
		}
		return check(value)
	})
}

var (
	sysctlName   = regexp.MustCompile(`^[A-Za-z0-9_-]+([./][A-Za-z0-9_./-]+)+$`)
	variableName = regexp.MustCompile(`^[^=\x00-\x20]+=[^\x00]*$`)
	word         = regexp.MustCompile(`^[A-Za-z_]+$`)
	size         = regexp.MustCompile(`^(\d{1,18}) ?([kKmMgGtT]?)i?[bB]?$`)
	ulimit       = regexp.MustCompile(`^([a-z]+)=(-1|unlimited|\d{1,20})(?::(-1|unlimited|\d{1,20}))?$`)
)

func checkSysctls(sysctls map[string]string) string {
	if len(sysctls) > maxDefaults {
		return fmt.Sprintf("has %d entries; want at most %d", len(sysctls), maxDefaults)
	}
	for _, name := range sortedKeys(sysctls) {
		switch value := sysctls[name]; {
		case !sysctlName.MatchString(name) || len(name) > maxDefault:
			return fmt.Sprintf("%.100q is no name of a sysctl; want such as net.core.somaxconn", name)
		case value == "" || len(value) > maxDefault || strings.ContainsAny(value, "\x00\n"):
			return fmt.Sprintf("%s has the value %.100q; want one line that is not empty", name, value)
		}
	}
	return ""
}

func checkVariable(entry string) string {
	if !variableName.MatchString(entry) {
		return fmt.Sprintf("%.100q is no variable; want NAME=VALUE", entry)
	}
	return ""
}

func checkWord(text string) string {
	if !word.MatchString(text) {
		return fmt.Sprintf("%.100q is no capability; want such as CAP_CHOWN or CHOWN", text)
	}
	return ""
}

func checkTimezone(zone string) string {
	switch {
	case zone == "" || strings.EqualFold(zone, TimezoneLocal):
		return ""
	case !filepath.IsLocal(zone) || filepath.Clean(zone) != zone || strings.ContainsRune(zone, 0) || len(zone) > maxDefault:
		return fmt.Sprintf("%.100q is no time zone; want such as Europe/Berlin, or %s", zone, TimezoneLocal)
	}
	return ""
}

func checkUnsetProfile(profile string) string {
	file, ok := strings.CutPrefix(profile, ProfileLocalhost)
	switch {
	case ok:
		return checkDir(file)
	case profile == "", profile == ProfileUnconfined, profile == ProfileDefault:
		return ""
	}
	return fmt.Sprintf("%.100q is not known; use %s, %s or %s and a path", profile, ProfileUnconfined, ProfileDefault, ProfileLocalhost)
}

func checkProfileName(name string) string {
	if len(name) > maxDefault || strings.ContainsAny(name, "\x00\n") {
		return fmt.Sprintf("%.100q is no name of an AppArmor profile", name)
	}
	return ""
}

func checkShmSize(text string) string {
	bytes, err := parseSize(text)
	if err != nil {
		return err.Error()
	}
	if bytes < leastShm {
		return fmt.Sprintf("%q is too small; want at least %d bytes", text, leastShm)
	}
	return ""
}

// parseSize reads a number of bytes with or without a unit; each unit is a power of 1024.
func parseSize(text string) (int64, error) {
	m := size.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%.100q is no size; want such as 64MiB", text)
	}
	number, err := strconv.ParseInt(m[1], 10, 64)
	unit := int64(1)
	if m[2] != "" {
		unit <<= 10 * (1 + strings.Index("KMGT", strings.ToUpper(m[2])))
	}
	if err != nil || number > math.MaxInt64/unit {
		return 0, fmt.Errorf("%.100q is too large", text)
	}
	return number * unit, nil
}

// Ulimit is a resource limit of processes.
type Ulimit struct {
	// Name is as in ulimits: "nofile".
	Name       string
	Soft, Hard uint64
}

// ulimitNames are the limits of Linux.
var ulimitNames = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
	"sigpending", "stack",
}

// ParseUlimit reads an element of ulimits.
func ParseUlimit(text string) (Ulimit, error) {
	m := ulimit.FindStringSubmatch(text)
	if m == nil {
		return Ulimit{}, fmt.Errorf("%.100q is no limit; want such as nofile=1024:1048576", text)
	}
	if problem := checkOneOf(m[1], ulimitNames...); problem != "" {
		return Ulimit{}, fmt.Errorf("%q: the name %s", text, problem)
	}
	if m[3] == "" {
		m[3] = m[2]
	}
	limit := Ulimit{Name: m[1]}
	for i, value := range []*uint64{&limit.Soft, &limit.Hard} {
		if *value = Unlimited; m[2+i] == "unlimited" || m[2+i] == "-1" {
			continue
		}
		var err error
		if *value, err = strconv.ParseUint(m[2+i], 10, 64); err != nil {
			return Ulimit{}, fmt.Errorf("%q: %s is too large", text, m[2+i])
		}
	}
	if limit.Soft > limit.Hard {
		return Ulimit{}, fmt.Errorf("%q has a soft limit above the hard one", text)
	}
	return limit, nil
}

func checkUlimits(limits []string) string {
	seen := map[string]bool{}
	return checkList(limits, func(text string) string {
		limit, err := ParseUlimit(text)
		switch {
		case err != nil:
			return err.Error()
		case seen[limit.Name]:
			return fmt.Sprintf("%q is the second limit %s", text, limit.Name)
		}
		seen[limit.Name] = true
		return ""
	})
}
