package shim_test

import (
	"encoding/json"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/shim"
)

func (h *host) handler(name string) ociruntime.Handler {
	if name == "shim-v2" {
		return ociruntime.Handler{Name: name, Type: ociruntime.TypeShimV2, Path: "io.containerd.runc.v2", Root: filepath.Join(h.state, "runtime", name)}
	}
	return ociruntime.Handler{Name: name, Type: ociruntime.TypeOCI, Path: name, Root: filepath.Join(h.state, "runtime", name)}
}

// bundle makes a bundle of /bin/busybox that runs a shell script.
func (h *host) bundle(handler ociruntime.Handler, id, script string, change ...func(*specs.Spec)) shim.StartRequest {
	h.t.Helper()
	dir := filepath.Join(h.state, "containers", id)
	rootfs := filepath.Join(dir, "rootfs")
	for _, sub := range []string{"bin", "proc", "dev", "tmp", "etc"} {
		h.must(os.MkdirAll(filepath.Join(rootfs, sub), 0o755))
	}
	h.must(os.Chmod(filepath.Join(rootfs, "tmp"), 0o777))
	busybox, err := os.ReadFile("/bin/busybox")
	h.must(err)
	h.must(os.WriteFile(filepath.Join(rootfs, "bin/busybox"), busybox, 0o755))
	for _, applet := range []string{"sh", "sleep", "cat", "echo", "head", "yes", "seq", "setsid", "kill", "id", "stty", "true", "ls", "dd", "tail"} {
		h.must(os.Link(filepath.Join(rootfs, "bin/busybox"), filepath.Join(rootfs, "bin", applet)))
	}
	cgroupPath := "/" + h.name + "/" + id
	spec := &specs.Spec{
		Version: "1.0.0",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}, Cwd: "/"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755", "size=64k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
		},
		Linux: &specs.Linux{CgroupsPath: cgroupPath, Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
		}},
	}
	for _, c := range change {
		c(spec)
	}
	text, err := json.Marshal(spec)
	h.must(err)
	h.must(os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600))
	return shim.StartRequest{
		ID: id, SandboxID: "sandbox", Bundle: dir, Handler: handler, Terminal: spec.Process.Terminal,
		LogPath: filepath.Join(h.state, id+".log"), CgroupPath: cgroupPath, Deadline: testTimeout,
	}
}

// terminal gives a container a terminal.
func terminal(s *specs.Spec) { s.Process.Terminal = true }
