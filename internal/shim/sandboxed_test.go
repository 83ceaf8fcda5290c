package shim_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/shim"
)

// sandboxID is that of a container of gVisor with others in its sandbox; no two may be the same on one machine.
func (h *host) sandboxID() string { return h.name + "-sandbox" }

// sandbox starts it.
func (h *host) sandbox() {
	h.t.Helper()
	h.start(h.inSandbox(h.sandboxID(), "exec sleep 1000"))
}

// inSandbox is a container in the sandbox, or the one that the sandbox is made for.
func (h *host) inSandbox(id, script string, change ...func(*specs.Spec)) shim.StartRequest {
	h.t.Helper()
	handler := h.handler("runsc")
	handler.Options = map[string]string{"platform": "ptrace", "network": "host"}
	kind := "container"
	if id == h.sandboxID() {
		kind = "sandbox"
	}
	req := h.bundle(handler, id, script, append(change, func(s *specs.Spec) {
		s.Annotations = map[string]string{"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": h.sandboxID()}
		// As a pod's. gVisor cannot start where others make and remove devices meanwhile: "no such device".
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	})...)
	req.SandboxID, req.Sandboxed = h.sandboxID(), id != h.sandboxID()
	return req
}

// TestSandboxed: what a container in the sandbox of another writes, how it ends and what ends it is its own, also for a
// successor of the supervisor, and when it ended while there was none.
func TestSandboxed(t *testing.T) {
	h := newHost(t)
	h.sandbox()
	h.start(h.inSandbox("a", "echo a; echo oops >&2; exit 7"))
	if got := h.exit("a"); got.Code != 7 || !got.Known {
		t.Errorf("got %+v", got)
	}
	if got := h.log("a"); got["stdout"] != "a\n" || got["stderr"] != "oops\n" {
		t.Errorf("logged: %v", got)
	}
	h.start(h.inSandbox("b", "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done"))
	h.start(h.inSandbox("c", "echo up; exec sleep 1000"))
	h.start(h.inSandbox("d", "echo up; sleep 2; exit 11"))
	h.killShim()
	e, err := h.exec("c", "e", shell("echo hello; exit 3"))
	h.must(err)
	if got := h.read(e.stdout); got != "hello\n" {
		t.Errorf("got %q", got)
	}
	if code, err := e.Wait(h.ctx()); code != 3 || err != nil {
		t.Errorf("exec: got %d %v", code, err)
	}
	h.must(h.client.Kill(h.ctx(), "b", syscall.SIGTERM))
	h.must(h.client.KillAll(h.ctx(), "c"))
	for id, want := range map[string]int{"b": 9, "c": 137, "d": 11} {
		if got := h.exit(id); got.Code != want || !got.Known {
			t.Errorf("%s: got %+v, want %d", id, got, want)
		}
		h.must(h.client.Delete(h.ctx(), id))
		h.nothingLeft(id)
	}
}

// TestSandboxedTerminal: such a container may have a terminal.
func TestSandboxedTerminal(t *testing.T) {
	h := newHost(t)
	h.sandbox()
	h.start(h.inSandbox("a", "[ -t 0 ] && echo has one; exit 4", terminal))
	if got := h.exit("a"); got.Code != 4 || h.log("a")["stdout"] != "has one\n" {
		t.Errorf("got %+v %q", got, h.log("a"))
	}
}

// TestSandboxEnds: with the sandbox its containers end; how is said in words.
func TestSandboxEnds(t *testing.T) {
	h := newHost(t)
	h.sandbox()
	h.start(h.inSandbox("a", "exec sleep 1000"))
	h.must(h.client.KillAll(h.ctx(), h.sandboxID()))
	if got := h.exit(h.sandboxID()); got.Code != 137 {
		t.Errorf("got %+v", got)
	}
	if got := h.exit("a"); got.Known || !strings.Contains(got.Reason, "sandbox of the pod ended") {
		t.Errorf("got %+v", got)
	}
}

// TestHungSandbox: a sandbox that does not answer blocks no call for ever.
func TestHungSandbox(t *testing.T) {
	h := newHost(t)
	h.sandbox()
	pid := h.start(h.inSandbox("a", "exec sleep 1000")).PID
	h.must(syscall.Kill(pid, syscall.SIGSTOP))
	h.must(h.client.Delete(h.ctx(), "a"))
	h.exit(h.sandboxID())
}

// TestSandboxedKilledDuringStart: the supervisor dies at many instants of a start, which the next one completes or
// recreates.
func TestSandboxedKilledDuringStart(t *testing.T) {
	for round := range 5 {
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			h := newHost(t)
			for _, id := range []string{h.sandboxID(), "a"} {
				req := h.inSandbox(id, "echo up; exec sleep 1000")
				done := make(chan error, 1)
				_, err := h.client.List(h.ctx()) // there is a supervisor again
				h.must(err)
				pid := h.client.PID()
				go func() {
					_, err := h.client.Start(h.ctx(), req)
					done <- err
				}()
				time.Sleep(time.Duration(round) * 60 * time.Millisecond) // the point of the test: many instants
				h.must(syscall.Kill(pid, syscall.SIGKILL))
				err = <-done
				if err != nil && id == "a" && strings.Contains(err.Error(), "exists") {
					// The sandbox has it, but the runtime was killed before it had written that down. It is of no use for ever.
					id = "b"
					h.start(h.inSandbox(id, "echo up; exec sleep 1000"))
				} else if err != nil {
					t.Fatalf("start %s: %v", id, err)
				}
				h.eventually("it is up", func() bool { return strings.HasPrefix(h.log(id)["stdout"], "up\n") })
			}
			for _, id := range []string{"a", "b", h.sandboxID()} {
				h.must(h.client.Delete(h.ctx(), id))
			}
			if left, err := os.ReadDir(filepath.Join(h.state, "runtime/runsc")); err != nil || len(left) > 0 {
				t.Errorf("the runtime keeps %v %v", left, err)
			}
		})
	}
}
