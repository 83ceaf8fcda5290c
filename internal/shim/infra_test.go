package shim_test

import (
	"os"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/test/usermap"
)

func TestInfra(t *testing.T) {
	h := newHost(t)
	h.must(h.cgroup.Create("/" + h.name + "/pod"))
	pid, err := h.client.StartInfra(h.ctx(), shim.InfraRequest{ID: "infra", CgroupPath: "/" + h.name + "/pod"})
	h.must(err)
	again, err := h.client.StartInfra(h.ctx(), shim.InfraRequest{ID: "infra", CgroupPath: "/" + h.name + "/pod"})
	if err != nil || again != pid {
		t.Errorf("a second call: got %d %v, want %d", again, err, pid)
	}
	checkInfra(t, h, pid)
	// A container joins its PID namespace; orphans in there are reaped.
	h.start(h.bundle(h.handler("runc"), "c", "(sleep 0.01 &) ; sleep 1000", func(s *specs.Spec) {
		s.Linux.Namespaces[0].Path = "/proc/" + itoa(pid) + "/ns/pid"
	}))
	if err := h.client.Kill(h.ctx(), "c", syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	h.exit("c")
	h.killShim()
	h.must(h.client.Ping(h.ctx()))
	h.must(syscall.Kill(pid, syscall.SIGKILL))
	if got := h.exit("infra"); got.Signal != 9 || !got.Known {
		t.Errorf("got %+v", got)
	}
	h.must(h.client.Delete(h.ctx(), "infra"))
	h.nothingLeft("infra")
	if _, err := h.client.StartInfra(h.ctx(), shim.InfraRequest{ID: "bad", NetNS: "/nonexistent"}); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("a namespace that is not there: got %v", err)
	}
	h.nothingLeft("bad")
}

// TestInfraInUserNamespace: the PID namespace belongs to the user namespace, and the process has no rights in it.
func TestInfraInUserNamespace(t *testing.T) {
	h := newHost(t)
	user := usermap.User(t, 12<<16)
	path := "/proc/" + itoa(os.Getpid()) + "/fd/" + itoa(int(user.Fd()))
	pid, err := h.client.StartInfra(h.ctx(), shim.InfraRequest{ID: "infra", User: path, UID: 65534, GID: 65534})
	h.must(err)
	status, err := os.ReadFile("/proc/" + itoa(pid) + "/status")
	h.must(err)
	for _, want := range []string{"Uid:\t" + itoa(12<<16+65534), "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "NSpid:\t" + itoa(pid) + "\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status has no %q:\n%s", want, status)
		}
	}
	h.eventually("it holds no descriptor", func() bool {
		fds, err := os.ReadDir("/proc/" + itoa(pid) + "/fd")
		h.must(err)
		return len(fds) == 0
	})
	h.killShim()
	h.must(h.client.Ping(h.ctx()))
	h.must(syscall.Kill(pid, syscall.SIGKILL))
	if got := h.exit("infra"); got.Signal != 9 || !got.Known {
		t.Errorf("got %+v", got)
	}
	h.must(h.client.Delete(h.ctx(), "infra"))
	h.nothingLeft("infra")
	_, err = h.client.StartInfra(h.ctx(), shim.InfraRequest{ID: "bad", User: "/proc/self/ns/net", UID: 1, GID: 1})
	if err == nil || !strings.Contains(err.Error(), "/proc/self/ns/net") {
		t.Errorf("what is no user namespace: got %v", err)
	}
	h.nothingLeft("bad")
}

// TestInfraLabels: an SELinux label that the host does not know, as any where there is no SELinux, is refused by its name, be
// it that of the process or of its root, and nothing is left. What known ones do is seen by TestSELinux.
func TestInfraLabels(t *testing.T) {
	h := newHost(t)
	const label = "no_u:no_r:no_t:s0"
	for _, req := range []shim.InfraRequest{{ID: "process", ProcessLabel: label}, {ID: "root", MountLabel: label}} {
		if _, err := h.client.StartInfra(h.ctx(), req); err == nil || !strings.Contains(err.Error(), label) {
			t.Errorf("a label of the %s: got %v, want an error with its name", req.ID, err)
		}
		h.nothingLeft(req.ID)
	}
}

func checkInfra(t *testing.T, h *host, pid int) {
	t.Helper()
	status, err := os.ReadFile("/proc/" + itoa(pid) + "/status")
	h.must(err)
	for _, want := range []string{"Uid:\t2147483647\t2147483647", "Gid:\t2147483647\t2147483647", "CapPrm:\t0000000000000000", "Seccomp:\t2", "CapBnd:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "NSpid:\t" + itoa(pid) + "\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status has no %q:\n%s", want, status)
		}
	}
	mounts, err := os.ReadFile("/proc/" + itoa(pid) + "/mountinfo")
	h.must(err)
	if n := strings.Count(string(mounts), "\n"); n != 1 {
		t.Errorf("it has %d mounts:\n%s", n, mounts)
	}
	h.eventually("it holds no descriptor", func() bool {
		fds, err := os.ReadDir("/proc/" + itoa(pid) + "/fd")
		h.must(err)
		return len(fds) == 0
	})
}
