package shim_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/berth-runtime/berth/internal/ociruntime"
)

// shimsOf finds the shim-v2 processes of this host by their command lines.
func (h *host) shimsOf() []int {
	h.t.Helper()
	entries, err := os.ReadDir("/proc")
	h.must(err)
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && strings.Contains(string(line), "containerd-shim-runc-v2\x00") && strings.Contains(string(line), h.state+"/") && alive(pid) {
			found = append(found, pid)
		}
	}
	return found
}

// TestShimServesPod: one shim-v2 serves the containers of a pod, and ends with the
// last one. Nothing of it is left, also not its socket.
func TestShimServesPod(t *testing.T) {
	h := newHost(t)
	handler := h.handler("shim-v2")
	for _, pod := range []string{"p1", "p2"} {
		for _, id := range []string{"a", "b"} {
			req := h.bundle(handler, pod+id, "echo up; exec sleep 1000")
			req.SandboxID = pod
			h.start(req)
		}
	}
	if got := h.shimsOf(); len(got) != 2 {
		t.Fatalf("shims of two pods: %v", got)
	}
	for _, pid := range h.shimsOf() { // an OCI runtime that is killed leaves nothing in /tmp: see TestRemoveScratchOfAKilledRuntime
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		h.must(err)
		if !strings.Contains(string(env), ociruntime.CloneDirectory+"="+h.state+"/shim/v2/p") {
			t.Errorf("the OCI runtime of a shim works elsewhere: %q", env)
		}
	}
	h.must(h.client.Delete(h.ctx(), "p1a"))
	left, err := os.ReadDir(filepath.Join(h.state, "containers/p1a"))
	h.must(err)
	if len(left) != 2 { // config.json and rootfs
		t.Errorf("the shim left %v in the bundle", left)
	}
	h.killShim() // what is shared is found again
	h.must(h.client.Delete(h.ctx(), "p2a"))
	if got := h.shimsOf(); len(got) != 2 {
		t.Fatalf("shims of two pods: %v", got)
	}
	e, err := h.exec("p1b", "e", shell("echo hello"))
	h.must(err)
	if got := h.read(e.stdout); got != "hello\n" {
		t.Errorf("got %q", got)
	}
	if code, err := e.Wait(h.ctx()); code != 0 || err != nil {
		t.Errorf("got %d %v", code, err)
	}
	h.must(h.client.Delete(h.ctx(), "p1b"))
	h.must(h.client.Delete(h.ctx(), "p2b"))
	if got := h.shimsOf(); len(got) != 0 {
		t.Errorf("shims are left: %v", got)
	}
	h.noShimFiles()
}

func (h *host) noShimFiles() {
	h.t.Helper()
	left, err := os.ReadDir(filepath.Join(h.state, "shim/v2"))
	if err != nil && !os.IsNotExist(err) || len(left) > 0 {
		h.t.Errorf("left: %v %v", left, err)
	}
}

// TestKilledShimV2: the containers of a shim-v2 are ended with it, and how is said
// in words. The pod can have new ones.
func TestKilledShimV2(t *testing.T) {
	for _, name := range []string{"supervised", "alone"} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			handler := h.handler("shim-v2")
			var pids []int
			for _, id := range []string{"a", "b"} {
				pids = append(pids, h.start(h.bundle(handler, id, "echo up; exec sleep 1000")).PID)
			}
			kill := func() {
				for _, pid := range h.shimsOf() {
					h.must(syscall.Kill(pid, syscall.SIGKILL))
				}
			}
			if name == "alone" { // the supervisor learns of it when it is there again
				stopClientDuring(h, func() {
					h.killShim()
					kill()
				})
			} else {
				kill()
			}
			for i, id := range []string{"a", "b"} {
				got := h.exit(id)
				if got.Known || got.Code == 0 || !strings.Contains(got.Reason, "shim-v2 process of the pod died") {
					t.Errorf("%s: got %+v", id, got)
				}
				h.eventually("it is dead", func() bool { return !alive(pids[i]) })
				h.must(h.client.Delete(h.ctx(), id))
				h.nothingLeft(id)
			}
			h.noShimFiles()
			h.start(h.bundle(handler, "c", "exit 5"))
			if got := h.exit("c"); got.Code != 5 {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestHungShimV2: a shim that does not answer blocks no call for ever.
func TestHungShimV2(t *testing.T) {
	h := newHost(t)
	h.start(h.bundle(h.handler("shim-v2"), "c", "exec sleep 1000"))
	shims := h.shimsOf()
	if len(shims) != 1 {
		t.Fatalf("shims: %v", shims)
	}
	h.must(syscall.Kill(shims[0], syscall.SIGSTOP))
	h.must(h.client.Delete(h.ctx(), "c"))
	h.nothingLeft("c")
	h.eventually("the shim is gone", func() bool { return len(h.shimsOf()) == 0 })
	h.noShimFiles()
}

// TestPublish: what older shims execute to send an event takes it and ends well.
func TestPublish(t *testing.T) {
	cmd := exec.Command(binary, "--address", "/none", "publish", "--topic", "/tasks/exit", "--namespace", "berth")
	cmd.Stdin = strings.NewReader("an event")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("got %q %v", out, err)
	}
}
