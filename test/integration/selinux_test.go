package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/selinux"
	"github.com/berth-runtime/berth/test/harness"
)

// TestSELinux: whatever belongs to a pod has its level, with and without a user namespace: all processes, that which holds
// the PID namespace among them, and all file systems. Another pod has another level. On a host without SELinux the same
// things have no label, and work.
func TestSELinux(t *testing.T) {
	enabled := selinux.Enabled() // before the leak check: its library keeps /proc open for good
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		ref := n.Push("data", data(t))
		if _, err := pull(n, ref); err != nil {
			t.Fatal(err)
		}
		levels := map[string]string{}
		for name, change := range map[string]func(*runtimeapi.PodSandboxConfig){
			"plain": func(*runtimeapi.PodSandboxConfig) {}, "mapped": userNamespace,
		} {
			p := n.RunPod(change, func(c *runtimeapi.PodSandboxConfig) {
				c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
			})
			c := p.Start([]string{"sleep", "1000"}, likePod(p), imageMount("/image", ref, ""))
			pid, infra := containerPID(t, c), cgroupPID(t, "infra-"+p.ID)
			process := processLabel(t, pid)
			equal(t, "label of the infra process", processLabel(t, infra), process)
			root := "/proc/" + pid + "/root"
			file := fileLabel(t, root)
			for _, path := range []string{"/bin/busybox", "/image", "/image/dir/file", "/dev", "/dev/shm", "/dev/mqueue", "/dev/pts", "/etc/hosts"} {
				equal(t, "label of "+path, fileLabel(t, root+path), file)
			}
			equal(t, "label of the infra process's root", fileLabel(t, "/proc/"+infra+"/root"), file)
			c.Output("sh", "-c", "echo x >/new && echo x >/dev/shm/new && cat /image/dir/file")
			if !enabled {
				equal(t, "label", file, "")
				continue
			}
			levels[name] = levelOf(process)
			equal(t, "type of the process", strings.Split(process, ":")[2], "container_t")
			equal(t, "level of files", levelOf(file), levels[name])
			equal(t, "label of a command", strings.TrimRight(c.Output("cat", "/proc/self/attr/current"), "\x00"), process)
		}
		if enabled && (levels["plain"] == levels["mapped"] || levels["plain"] == "") {
			t.Errorf("levels of two pods are %v", levels)
		}
	})
}

// processLabel is the SELinux label of a process; empty where there are none.
func processLabel(t *testing.T, pid string) string {
	t.Helper()
	if !selinux.Enabled() {
		return ""
	}
	label, err := os.ReadFile(filepath.Join("/proc", pid, "attr/current"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(string(label), "\x00\n")
}

// fileLabel is the SELinux label of a file; empty if it has none.
func fileLabel(t *testing.T, path string) string {
	t.Helper()
	data := make([]byte, 256)
	n, err := unix.Getxattr(path, "security.selinux", data)
	if err != nil && (selinux.Enabled() || err != unix.ENODATA && err != unix.EOPNOTSUPP) {
		t.Fatalf("label of %s: %v", path, err)
	}
	return strings.TrimRight(string(data[:max(n, 0)]), "\x00")
}

// levelOf is the fourth part of a label, which has colons itself.
func levelOf(label string) string { return strings.SplitN(label, ":", 4)[3] }
