package pod

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/spec"
)

const (
	// hostResolvConf is what a pod without DNS configuration gets.
	hostResolvConf = "/etc/resolv.conf"
	// hostHosts is what containers get whose request mounts no /etc/hosts, as with containerd.
	hostHosts = "/etc/hosts"
	// localtimeFile holds the time zone of containers, where one is configured.
	localtimeFile = "localtime"
	// maxHostFile bounds what is copied of a file of the host.
	maxHostFile = 1 << 20
)

// writeFiles writes the files which the containers of a pod share: resolv.conf,
// hostname and hosts. Kubelet mounts its own hosts file over ours.
func (e *Engine) writeFiles(rec *sandboxRecord) error {
	dir := e.store.FilesDir(rec.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	resolv, err := resolvConf(rec.Config.M.GetDnsConfig())
	if err != nil {
		return err
	}
	hosts, err := readHostFile(hostHosts)
	if err != nil {
		return err
	}
	if hosts == "" {
		hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	}
	name := spec.Hostname(rec.Config.M, e.opts.Host)
	files := map[string]string{
		"resolv.conf": resolv,
		"hostname":    name + "\n",
		"hosts":       hosts,
	}
	if rec.Timezone != "" {
		files[localtimeFile] = string(e.opts.Defaults.Localtime)
	}
	for base, content := range files {
		path := filepath.Join(dir, base)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
		if root := rootOf(rec.Config.M); root != (owner{}) {
			if err := os.Chown(path, int(root.uid), int(root.gid)); err != nil {
				return err
			}
		}
	}
	return nil
}

// resolvConf renders a DNS configuration; one that says nothing, or none, means that of the host.
func resolvConf(dns *runtimeapi.DNSConfig) (string, error) {
	if len(dns.GetServers()) == 0 && len(dns.GetSearches()) == 0 && len(dns.GetOptions()) == 0 {
		return readHostFile(hostResolvConf)
	}
	var b strings.Builder
	if len(dns.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.GetSearches(), " "))
	}
	for _, server := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(dns.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.GetOptions(), " "))
	}
	return b.String(), nil
}

// readHostFile returns the contents of a file of the host, nothing if there is none.
func readHostFile(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	data, err := io.ReadAll(io.LimitReader(f, maxHostFile+1))
	if err == nil && len(data) > maxHostFile {
		err = fmt.Errorf("%s has more than %d bytes: %w", path, maxHostFile, errdefs.ErrFailedPrecondition)
	}
	return string(data), err
}
