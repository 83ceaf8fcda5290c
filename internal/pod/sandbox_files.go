package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/spec"
)

// hostResolvConf is what a pod without DNS configuration gets.
const hostResolvConf = "/etc/resolv.conf"

// writeFiles writes the files which the containers of a pod share: resolv.conf,
// hostname and hosts. Kubelet mounts its own hosts file over ours.
func (e *Engine) writeFiles(rec *sandboxRecord) error {
	dir := e.store.filesDir(rec.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	resolv, err := resolvConf(rec.Config.M.GetDnsConfig())
	if err != nil {
		return err
	}
	name := spec.Hostname(rec.Config.M, e.opts.Host)
	files := map[string]string{
		"resolv.conf": resolv,
		"hostname":    name + "\n",
		"hosts":       "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t" + name + "\n",
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
		data, err := os.ReadFile(hostResolvConf)
		if errors.Is(err, os.ErrNotExist) {
			return "", nil
		}
		return string(data), err
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

// save writes the record down. The first save with every step done is what
// makes the sandbox one that is listed.
func (s *sandbox) save() error {
	s.saving.Lock()
	defer s.saving.Unlock()
	if s.forgotten {
		return nil
	}
	s.mu.Lock()
	rec := s.rec
	rec.Listed = rec.Listed || s.state.Goal == sandboxReady && sandboxKind.Complete(s.state)
	rec.Machine = sandboxKind.Save(s.state)
	s.mu.Unlock()
	if err := s.engine.store.write(s.engine.store.sandboxFile(rec.ID), rec); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec.Listed = rec.Listed
	return nil
}

// forget removes what is written down; nothing of the sandbox is left.
func (s *sandbox) forget() error {
	e := s.engine
	s.tellRemoved(e.drivers.ctx)
	s.saving.Lock()
	s.forgotten = true
	err := e.store.removeSandbox(s.rec.ID)
	s.saving.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sandboxes.remove(s)
	e.releaseLabels(s.rec.Labels)
	delete(e.names, sandboxName(s.rec.Config.M.GetMetadata()))
	return err
}
