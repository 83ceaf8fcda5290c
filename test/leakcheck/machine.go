package leakcheck

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"

	"github.com/berth-runtime/berth/test/privilege"
)

// kernelLinks are links that the kernel adds by itself to every network namespace when a tunnel module is loaded.
var kernelLinks = map[string]bool{
	"tunl0": true, "sit0": true, "gre0": true, "gretap0": true, "erspan0": true,
	"ip_vti0": true, "ip6_vti0": true, "ip6tnl0": true, "ip6gre0": true,
}

// pluginChains are created by the CNI plugins on first use and never removed, by design.
var pluginChains = []string{
	"CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SNAT", "CNI-FORWARD", "CNI-ADMIN",
}

// nftTime bounds one listing of the rule set.
const nftTime = 20 * time.Second

// kinds lists what is counted, in the order in which a report reads best.
func kinds(isolated bool, dirs []string) []kind {
	all := []kind{{name: kindProcesses, count: countProcesses}}
	if privilege.Available() { // only root makes these, and lists rules
		all = append(all,
			kind{name: "mounts", shared: !isolated, durable: true, count: countMounts},
			kind{name: "links", shared: !isolated, durable: true, count: countLinks},
			kind{name: "nftables", shared: !isolated, durable: true, count: countNft},
			kind{name: "cgroups", shared: true, count: countCgroups})
	}
	all = append(all, kind{name: "descriptors", count: countDescriptors}, kind{name: "goroutines", count: countGoroutines})
	if len(dirs) > 0 {
		all = append(all, kind{name: "files", durable: true, count: func() (counts, error) { return countFiles(dirs) }})
	}
	if isolated {
		all = append(all, kind{name: "places for temporary files", count: countPlaces})
	}
	return all
}

// countMounts lists the mounts of this mount namespace; a pinned namespace is one of them, of type nsfs.
func countMounts() (counts, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	all := counts{}
	for _, m := range mounts {
		if m.FSType == "cgroup" {
			continue // test set-up may add a controller's v1 hierarchy that the machine lacks, and leaves it
		}
		words := fmt.Sprintf("%s on %s", m.FSType, m.Mountpoint)
		if m.FSType == "nsfs" {
			words = fmt.Sprintf("pin of namespace %s on %s", m.Root, m.Mountpoint)
		}
		// The same place may be mounted on more than once: count the layers.
		id := m.Mountpoint + " " + m.FSType
		for n := 2; all[id] != ""; n++ {
			id = fmt.Sprintf("%s %s (%d)", m.Mountpoint, m.FSType, n)
		}
		all[id] = words
	}
	return all, nil
}

func countLinks() (counts, error) {
	links, err := netlink.LinkList()
	// A dump that others changed under way is incomplete: ask again.
	for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < 10; try++ {
		links, err = netlink.LinkList()
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	all := counts{}
	for _, l := range links {
		if !kernelLinks[l.Attrs().Name] {
			all[l.Attrs().Name] = fmt.Sprintf("%s (%s)", l.Attrs().Name, l.Type())
		}
	}
	return all, nil
}

// countNft lists every table, chain, set and rule, each as the path to its line in the output of nft.
func countNft() (counts, error) {
	ctx, cancel := context.WithTimeout(context.Background(), nftTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nft", "--stateless", "list", "ruleset")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("list nftables rules: %w: install the package nftables", err)
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables rules: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return parseNft(out), nil
}

func parseNft(out []byte) counts {
	all := counts{}
	var path []string
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
			continue
		case line == "}":
			path = path[:max(0, len(path)-1)]
			continue
		case strings.HasSuffix(line, "{"):
			line = strings.TrimSpace(strings.TrimSuffix(line, "{"))
			path = append(path, line)
			line = ""
		}
		words := strings.Join(append(append([]string(nil), path...), line), ": ")
		words = strings.TrimSuffix(words, ": ")
		if !ofPlugins(words) {
			all[words] = words
		}
	}
	return all
}

// ofPlugins returns whether a rule or chain is permanent state of the CNI plugins or of iptables: a table of
// iptables and its built-in chains exist from the first use of that program on.
func ofPlugins(words string) bool {
	for _, c := range pluginChains {
		if strings.Contains(words, c) {
			return true
		}
	}
	parts := strings.Split(words, ": ")
	table := strings.TrimPrefix(strings.TrimPrefix(parts[0], "table ip6 "), "table ip ")
	switch table {
	case "nat", "filter", "mangle", "raw", "security":
	default:
		return false
	}
	return len(parts) == 1 || len(parts) >= 2 && builtinChain(parts[1]) && (len(parts) == 2 || strings.HasPrefix(parts[2], "type "))
}

func builtinChain(words string) bool {
	switch words {
	case "chain PREROUTING", "chain INPUT", "chain FORWARD", "chain OUTPUT", "chain POSTROUTING":
		return true
	}
	return false
}

// countCgroups lists the directories of all hierarchies.
func countCgroups() (counts, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	all := counts{}
	for _, m := range mounts {
		if err := walk(m.Mountpoint, func(path string, d fs.DirEntry) {
			if d.IsDir() && path != m.Mountpoint {
				all[path] = path
			}
		}); err != nil {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
	}
	return all, nil
}

// countFiles lists everything beneath dirs.
func countFiles(dirs []string) (counts, error) {
	all := counts{}
	for _, dir := range dirs {
		if err := walk(dir, func(path string, d fs.DirEntry) {
			all[path] = fmt.Sprintf("%s (%s)", path, d.Type())
		}); err != nil {
			return nil, fmt.Errorf("list files: %w", err)
		}
	}
	return all, nil
}

// countPlaces lists what tests and plugins leave outside of the directories of tests.
func countPlaces() (counts, error) {
	all := counts{}
	for _, dir := range []string{os.TempDir(), "/run", "/var/lib", "/run/netns", "/etc/cni/net.d"} {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list temporary files: %w", err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if !permanentPath(path) {
				all[path] = path
			}
		}
	}
	// host-local keeps one file per address that is in use; the lock and the last address are its to keep.
	err := walk("/var/lib/cni/networks", func(path string, d fs.DirEntry) {
		if !d.IsDir() && d.Name() != "lock" && !strings.HasPrefix(d.Name(), "last_reserved_ip") {
			all[path] = "address lease " + path
		}
	})
	return all, err
}

// permanentPath returns whether CNI plugins, iptables or containerd's shims create a path on first use and never remove it.
func permanentPath(path string) bool {
	switch path {
	case "/run/netns", "/run/xtables.lock", "/var/lib/cni", "/run/cni", "/run/containerd":
		return true
	}
	return false
}

// walk visits a tree that may change under way: what is gone is no error.
func walk(root string, visit func(path string, d fs.DirEntry)) error {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		visit(path, d)
		return nil
	})
	if err != nil {
		return fmt.Errorf("walk %s: %w", root, err)
	}
	return nil
}
