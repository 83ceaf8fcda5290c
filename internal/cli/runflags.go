package cli

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Every parser here takes the text of one flag and names it in its errors.

const (
	minMemory = 4 << 20 // less than this does not start a process
	maxPort   = 65535
)

// parseMemory reads an amount of memory. Letters mean powers of 1024, with or
// without "i", as both docker's and Kubernetes' users expect of memory limits.
func parseMemory(flag, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	wrong := fmt.Errorf("%s %q: want a size such as 512m, 1.5g or 256Mi", flag, text)
	lower := strings.ToLower(strings.TrimSpace(text))
	lower = strings.TrimSuffix(lower, "b")
	lower = strings.TrimSuffix(lower, "i")
	shift := 0
	if i := strings.IndexByte("kmgt", lastByte(lower)); i >= 0 && lower != "" {
		shift, lower = (i+1)*10, lower[:len(lower)-1]
	}
	number, err := strconv.ParseFloat(lower, 64)
	if err != nil || math.IsNaN(number) || number < 0 {
		return 0, wrong
	}
	bytes := number * float64(uint64(1)<<shift)
	switch {
	case bytes >= math.MaxInt64:
		return 0, wrong
	case bytes < minMemory:
		return 0, fmt.Errorf("%s %q: too little to run a process; want at least 4m", flag, text)
	}
	return int64(bytes), nil
}

func lastByte(s string) byte {
	if s == "" {
		return 0
	}
	return s[len(s)-1]
}

// parseEnv reads a variable; without "=" its value is that of our own, and it
// is left out if we have none.
func parseEnv(text string) (kv *runtimeapi.KeyValue, err error) {
	name, value, ok := strings.Cut(text, "=")
	if name == "" {
		return nil, fmt.Errorf("--env %q: want NAME=VALUE, or NAME to pass on the caller's value", text)
	}
	if !ok {
		if value, ok = os.LookupEnv(name); !ok {
			return nil, nil //nolint:nilnil // no variable is an answer
		}
	}
	return &runtimeapi.KeyValue{Key: name, Value: []byte(value)}, nil
}

// readEnvFile reads variables, one per line, without quoting.
func readEnvFile(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	var out []string
	for line := range strings.SplitSeq(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out, nil
}

// parseMount reads SOURCE:TARGET[:OPTIONS]. The source must be there: a
// directory made by accident hides a mistake.
func parseMount(text string) (*runtimeapi.Mount, error) {
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return nil, fmt.Errorf("--volume %q: want SOURCE:TARGET or SOURCE:TARGET:OPTIONS", text)
	}
	if !strings.ContainsRune(parts[0], '/') && parts[0] != "." && parts[0] != ".." {
		return nil, fmt.Errorf("--volume %q: named volumes are not supported; want the path of a file or directory on this host, such as ./%s", text, parts[0])
	}
	source, err := filepath.Abs(parts[0])
	if err != nil {
		return nil, fmt.Errorf("--volume %q: %w", text, err)
	}
	if _, err := os.Stat(source); err != nil {
		return nil, fmt.Errorf("--volume %q: %w; create it first", text, err)
	}
	if !filepath.IsAbs(parts[1]) {
		return nil, fmt.Errorf("--volume %q: target %q is relative; want an absolute path in the container", text, parts[1])
	}
	m := &runtimeapi.Mount{HostPath: source, ContainerPath: filepath.Clean(parts[1])}
	if len(parts) == 3 {
		for option := range strings.SplitSeq(parts[2], ",") {
			if err := setMountOption(m, option); err != nil {
				return nil, fmt.Errorf("--volume %q: %w", text, err)
			}
		}
	}
	return m, nil
}

func setMountOption(m *runtimeapi.Mount, option string) error {
	switch option {
	case "rw":
	case "ro":
		m.Readonly = true
	case "rro":
		m.Readonly, m.RecursiveReadOnly = true, true
	case "rprivate", "private":
		m.Propagation = runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	case "rslave", "slave":
		m.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	case "rshared", "shared":
		m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	case "z", "Z":
		m.SelinuxRelabel = true
	default:
		return fmt.Errorf("unknown option %q; want ro, rw, rro (recursively read-only), rslave, rshared, rprivate or z", option)
	}
	return nil
}

// parsePort reads [ADDRESS:][HOSTPORT:]PORT[/PROTOCOL].
func parsePort(text string) (*runtimeapi.PortMapping, error) {
	wrong := func(why string) error {
		return fmt.Errorf("--publish %q: %s; want for example 8080:80, 127.0.0.1:8080:80 or [::1]:53:53/udp", text, why)
	}
	rest, protocol, ok := strings.Cut(text, "/")
	m := &runtimeapi.PortMapping{}
	if ok {
		value, known := runtimeapi.Protocol_value[strings.ToUpper(protocol)]
		if !known {
			return nil, wrong(fmt.Sprintf("unknown protocol %q, want tcp, udp or sctp", protocol))
		}
		m.Protocol = runtimeapi.Protocol(value)
	}
	host, port := rest, rest
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, port = rest[:i], rest[i+1:]
		if i := strings.LastIndexByte(host, ':'); i >= 0 {
			address, err := netip.ParseAddr(strings.Trim(host[:i], "[]"))
			if err != nil {
				return nil, wrong(fmt.Sprintf("%q is not an IP address", host[:i]))
			}
			m.HostIp, host = address.String(), host[i+1:]
		}
	}
	var err error
	if m.HostPort, err = portNumber(host); err != nil {
		return nil, wrong(err.Error())
	}
	if m.ContainerPort, err = portNumber(port); err != nil {
		return nil, wrong(err.Error())
	}
	return m, nil
}

func portNumber(text string) (int32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 || n > maxPort {
		return 0, fmt.Errorf("%q is not a port from 1 to %d", text, maxPort)
	}
	return int32(n), nil //nolint:gosec // bounded above
}

// parseUser reads USER[:GROUP], each a number; the user may be a name.
func parseUser(text string, sc *runtimeapi.LinuxContainerSecurityContext) error {
	if text == "" {
		return nil
	}
	user, group, hasGroup := strings.Cut(text, ":")
	if user == "" {
		return fmt.Errorf("--user %q: want UID, UID:GID or NAME", text)
	}
	if uid, err := strconv.ParseUint(user, 10, 32); err == nil {
		sc.RunAsUser = &runtimeapi.Int64Value{Value: int64(uid)} //nolint:gosec // 32 bits
	} else {
		sc.RunAsUsername = user
	}
	if !hasGroup {
		return nil
	}
	gid, err := strconv.ParseUint(group, 10, 32)
	if err != nil {
		return fmt.Errorf("--user %q: want a numeric GID; the CRI has no group names", text)
	}
	sc.RunAsGroup = &runtimeapi.Int64Value{Value: int64(gid)} //nolint:gosec // 32 bits
	return nil
}

// parseDevice reads HOST[:CONTAINER[:PERMISSIONS]].
func parseDevice(text string) (*runtimeapi.Device, error) {
	parts := strings.Split(text, ":")
	d := &runtimeapi.Device{HostPath: parts[0], ContainerPath: parts[0], Permissions: "rwm"}
	if len(parts) > 1 && parts[1] != "" {
		d.ContainerPath = parts[1]
	}
	if len(parts) > 2 {
		d.Permissions = parts[2]
	}
	if len(parts) > 3 || !filepath.IsAbs(d.HostPath) || !filepath.IsAbs(d.ContainerPath) ||
		d.Permissions == "" || strings.Trim(d.Permissions, "rwm") != "" {
		return nil, fmt.Errorf("--device %q: want for example /dev/fuse or /dev/sdb:/dev/disk:r", text)
	}
	return d, nil
}

// parsePairs reads KEY=VALUE flags.
func parsePairs(flag string, texts []string) (map[string]string, error) {
	out := make(map[string]string, len(texts))
	for _, text := range texts {
		key, value, ok := strings.Cut(text, "=")
		if key == "" || !ok {
			return nil, fmt.Errorf("%s %q: want KEY=VALUE", flag, text)
		}
		out[key] = value
	}
	return out, nil
}

// parseSeccomp reads a profile: the runtime's default, none, or a file.
func parseSeccomp(text string) (*runtimeapi.SecurityProfile, error) {
	switch text {
	case "", "default", "runtime/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	}
	path, err := filepath.Abs(text)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %q: want default, unconfined or a file: %w", text, err)
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: path}, nil
}

// setSecurityOption reads one --security-opt in the words that docker has for them.
func setSecurityOption(sc *runtimeapi.LinuxContainerSecurityContext, text string) error {
	key, value, ok := strings.Cut(text, "=")
	switch {
	case text == "no-new-privileges":
		sc.NoNewPrivs = true
		return nil
	case key == "seccomp" && ok:
		profile, err := parseSeccomp(value)
		if err != nil {
			return fmt.Errorf("--security-opt %q: %w", text, err)
		}
		sc.Seccomp = profile
		return nil
	case key == "apparmor" && value == "unconfined":
		sc.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		return nil
	case key == "apparmor" && value != "":
		sc.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: value}
		return nil
	}
	return fmt.Errorf("--security-opt %q: want no-new-privileges, seccomp=PROFILE or apparmor=PROFILE", text)
}

// checkName refuses names that could not be shown or used as a file's.
func checkName(flag, name string) error {
	const most = 63
	ok := name != "" && len(name) <= most
	for i, r := range name {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		ok = ok && (alnum || i > 0 && (r == '-' || r == '_' || r == '.'))
	}
	if !ok {
		return fmt.Errorf("%s %q: want at most %d letters, digits, '-', '_' and '.', with a letter or digit first", flag, name, most)
	}
	return nil
}

// errNoImage is a run without an image.
var errNoImage = errors.New("want an image and optionally a command")
