package config

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
)

const (
	maxDownloads = 64
	maxPort      = 65535

	// maxSocketPath is what fits into sockaddr_un, without the final zero.
	maxSocketPath = 107
	// longestSocket is the longest name of a socket beneath the state directory.
	longestSocket = "/shim/shim.sock"
	// minHostBits is the smallest host part of a built-in subnet: a network,
	// a gateway and a few pods.
	minHostBits = 3
)

var (
	handlerName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	flagName    = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	bareKey     = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
)

// ownFlags are those global flags of an OCI runtime that are not free to choose.
var ownFlags = []string{"root", "log", "log-format"}

// Validate returns everything that is wrong in c, nil if a daemon can start
// with it. It looks at values only, never at the host.
func (c *Config) Validate() error {
	p := c.problems()
	return p.err()
}

func (c *Config) problems() problems {
	var found problems
	for _, s := range c.allSections() {
		for _, set := range s.settings {
			if text := set.check(); text != "" {
				found.add(joinKey(s.name, set.key), text)
			}
		}
	}
	for name := range c.Runtime.Handlers {
		if !handlerName.MatchString(name) {
			found.add(handlersTable+"."+quoteKey(name),
				"is no name for a handler; use at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends")
		}
	}
	return found
}

// allSections returns every table of c, handlers included, sorted by name.
// Handlers in it are copies: checking them is fine, changing them is not.
func (c *Config) allSections() []section {
	all := sections(c)
	for _, name := range sortedKeys(c.Runtime.Handlers) {
		h := c.Runtime.Handlers[name]
		all = append(all, handlerSection(name, &h))
	}
	return all
}

func checkDir(dir string) string {
	switch {
	case dir == "":
		return "is empty; want the absolute path of a directory"
	case !filepath.IsAbs(dir):
		return fmt.Sprintf("%q is relative; want an absolute path", dir)
	case strings.ContainsRune(dir, 0):
		return fmt.Sprintf("%q contains a zero byte; no path can", dir)
	case filepath.Clean(dir) == "/":
		return "is the root of the file system; want a directory of its own"
	}
	return ""
}

// overlaySpecial are the characters that part the options of an overlay mount.
const overlaySpecial = `:,\`

func checkRoot(root string) string {
	if text := checkDir(root); text != "" {
		return text
	}
	if strings.ContainsAny(root, overlaySpecial) {
		return fmt.Sprintf("%q has one of the characters %s in it, which overlay mounts give a meaning; want a path without", root, overlaySpecial)
	}
	return ""
}

func checkOptionalDir(dir string) string {
	if dir == "" {
		return ""
	}
	return checkDir(dir)
}

func checkState(state, root string) string {
	if text := checkDir(state); text != "" {
		return text
	}
	if filepath.Clean(state) == filepath.Clean(root) {
		return fmt.Sprintf("%q is root as well; want another directory, since state is lost at a reboot and root is not", state)
	}
	if most := maxSocketPath - len(longestSocket); len(filepath.Clean(state)) > most {
		return fmt.Sprintf("%q is %d bytes long; want at most %d, since a socket path beneath it is limited to %d",
			state, len(filepath.Clean(state)), most, maxSocketPath)
	}
	return ""
}

func checkListen(listen string) string {
	path, ok := strings.CutPrefix(listen, "unix://")
	switch {
	case !ok || !filepath.IsAbs(path):
		return fmt.Sprintf("%q is no unix socket; want unix:// and an absolute path, such as %q", listen, DefaultListen)
	case strings.ContainsRune(path, 0) || strings.HasSuffix(path, "/"):
		return fmt.Sprintf("%q names no file; want such as %q", listen, DefaultListen)
	case len(path) > maxSocketPath:
		return fmt.Sprintf("has a path of %d bytes; a unix socket has at most %d", len(path), maxSocketPath)
	}
	return ""
}

func checkOneOf(value string, allowed ...string) string {
	if slices.Contains(allowed, value) {
		return ""
	}
	if len(allowed) == 1 {
		return fmt.Sprintf("%q is not known; the only possible value is %s", value, allowed[0])
	}
	last := len(allowed) - 1
	return fmt.Sprintf("%q is not known; use %s or %s", value, strings.Join(allowed[:last], ", "), allowed[last])
}

func checkRange(value, least, most int) string {
	if value < least || value > most {
		return fmt.Sprintf("%d is out of range; want %d to %d", value, least, most)
	}
	return ""
}

// leastLogLimit lets a container write a few lines per second.
const leastLogLimit = 1024

// checkLogLimit returns what is wrong with a limit of bytes of log per second.
func checkLogLimit(value int) string {
	if value != 0 && value < leastLogLimit {
		return fmt.Sprintf("%d is out of range; want 0 for no limit, or at least %d", value, leastLogLimit)
	}
	return ""
}

// checkEach returns what is wrong with the first bad element of a list.
func checkEach(values []string, check func(string) string) string {
	for i, v := range values {
		if text := check(v); text != "" {
			return fmt.Sprintf("element %d: %s", i+1, text)
		}
	}
	return ""
}

func checkDirs(dirs []string) string {
	if len(dirs) == 0 {
		return "is an empty list; want at least one directory"
	}
	return checkEach(dirs, checkDir)
}

func checkReference(ref string) string {
	if _, err := reference.ParseAnyReference(ref); err != nil {
		return fmt.Sprintf("%q is no image reference (%v); want such as registry.example/tools:1", ref, err)
	}
	return ""
}

func checkSubnets(subnets []string) string {
	if slices.Equal(subnets, []string{SubnetPodCIDR}) {
		return ""
	}
	have := map[int]string{}
	for _, s := range subnets {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Sprintf("%q is no subnet; want such as 10.85.0.0/16 or fd62:e7c4:1a85::/64", s)
		}
		addr := prefix.Addr()
		switch {
		case addr.Is4In6():
			return fmt.Sprintf("%q is IPv4 written as IPv6; want such as 10.85.0.0/16", s)
		case prefix.Masked() != prefix:
			return fmt.Sprintf("%q has bits set after its prefix; want %s", s, prefix.Masked())
		case addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast():
			return fmt.Sprintf("%q cannot be used for pods; want a private subnet such as 10.85.0.0/16 or fd62:e7c4:1a85::/64", s)
		case addr.BitLen()-prefix.Bits() < minHostBits:
			return fmt.Sprintf("%q is too small for pods; want at most /%d", s, addr.BitLen()-minHostBits)
		case have[addr.BitLen()] != "":
			return fmt.Sprintf("%q and %q are of one family; want at most one IPv4 and one IPv6 subnet", have[addr.BitLen()], s)
		}
		have[addr.BitLen()] = s
	}
	return ""
}

func checkDefaultHandler(r *Runtime) string {
	if _, ok := r.Handlers[r.DefaultHandler]; ok || r.DefaultHandler == "" {
		return ""
	}
	return fmt.Sprintf("%q is no handler; use one of %s, add the table [%s.%s], or leave it empty",
		r.DefaultHandler, strings.Join(sortedKeys(r.Handlers), ", "), handlersTable, quoteKey(r.DefaultHandler))
}

func checkProgram(program string) string {
	switch {
	case program == "":
		return "is empty; want the path of the OCI runtime, such as /usr/bin/crun"
	case strings.ContainsRune(program, 0):
		return fmt.Sprintf("%q contains a zero byte; no path can", program)
	case strings.Contains(program, "/") && !filepath.IsAbs(program):
		return fmt.Sprintf("%q is relative; want an absolute path or a bare name that is in PATH", program)
	}
	return ""
}

// shimOptions are the options of a handler that is a containerd shim.
var shimOptions = []string{"binary_name", "config_path", "shim_cgroup", "type_url"}

func checkOptions(kind string, options map[string]string) string {
	for _, name := range sortedKeys(options) {
		switch {
		case kind == HandlerShimV2 && !slices.Contains(shimOptions, name):
			return fmt.Sprintf("%q is no option of a shim; possible are %s", name, strings.Join(shimOptions, ", "))
		case kind == HandlerShimV2:
			if strings.ContainsRune(options[name], 0) {
				return fmt.Sprintf("%s contains a zero byte; no option can", name)
			}
		case name == "systemd_cgroup" || name == "systemd-cgroup":
			return fmt.Sprintf("%q is said once for all handlers; leave it out, and see runtime.cgroup_driver", name)
		case slices.Contains(ownFlags, name):
			return fmt.Sprintf("%q is set by berth itself; leave it out", name)
		case !flagName.MatchString(name):
			return fmt.Sprintf("%q is no flag; want its name without dashes in front, such as debug", name)
		case strings.ContainsRune(options[name], 0):
			return fmt.Sprintf("%s contains a zero byte; no flag can", name)
		}
	}
	return ""
}

// checkPattern refuses what can match no annotation.
func checkPattern(pattern string) string {
	if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
		return fmt.Sprintf("%q is no pattern; want a name with *, ? or [a-z] in it, such as io.katacontainers.*", pattern)
	}
	return ""
}

func checkAddress(address string) string {
	if _, err := netip.ParseAddr(address); err != nil {
		return fmt.Sprintf("%q is no IP address; want such as 127.0.0.1", address)
	}
	return ""
}

func checkDuration(text string, least time.Duration) string {
	d, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Sprintf("%q is no duration; want a number with a unit, such as \"30m\" or \"4h\"", text)
	}
	if d < least {
		return fmt.Sprintf("%q is too short; want at least %s", text, least)
	}
	return ""
}

// checkTLSFile checks one file of the stream server's TLS; other, if its key is
// given, has to come with it.
func checkTLSFile(s *Stream, file, other, otherKey string) string {
	switch {
	case file == "" && (other == "" || otherKey == ""):
		return ""
	case file == "":
		return fmt.Sprintf("is empty, but %s is not; want both or neither", otherKey)
	case !s.TLS:
		return "is of no use without tls = true"
	case !filepath.IsAbs(file):
		return fmt.Sprintf("%q is relative; want an absolute path", file)
	}
	return ""
}

func checkHostPort(address string) string {
	if address == "" {
		return ""
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Sprintf("%q is no address with a port; want such as 127.0.0.1:9620, or nothing", address)
	}
	return ""
}
