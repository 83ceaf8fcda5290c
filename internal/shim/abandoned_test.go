package shim_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

// descriptors counts those of the supervisor.
func (h *host) descriptors() int {
	h.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.client.PID()))
	h.must(err)
	return len(entries)
}

// TestAbandonedAttachesLeaveNoDescriptors gives attaches up at every instant of the call.
func TestAbandonedAttachesLeaveNoDescriptors(t *testing.T) {
	h := newHost(t)
	h.start(h.bundle(h.handler("runc"), "c", "sleep 1000"))
	a, err := h.client.Attach(h.ctx(), "c", false) // opens what stays open
	h.must(err)
	h.must(a.Close())
	before := h.descriptors()
	var attached, abandoned atomic.Int64
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 400 {
				ctx, cancel := context.WithCancel(context.Background())
				stop := time.AfterFunc(time.Duration((i*8+worker)%700)*time.Microsecond, cancel)
				a, err := h.client.Attach(ctx, "c", false)
				if err == nil {
					attached.Add(1)
					err = a.Close()
				} else if ctx.Err() != nil {
					abandoned.Add(1)
					err = nil
				}
				if err != nil {
					t.Errorf("attach: %v", err)
				}
				stop.Stop()
				cancel()
			}
		})
	}
	wg.Wait()
	if abandoned.Load() == 0 {
		t.Fatal("no attach was abandoned")
	}
	e, err := h.exec("c", "e", shell("exit 3")) // at once: nothing has to expire
	h.must(err)
	if code, err := e.Wait(h.ctx()); code != 3 || err != nil {
		t.Errorf("exec: got %d %v", code, err)
	}
	h.eventually("the descriptors of abandoned attaches are closed", func() bool { return h.descriptors() <= before })
	t.Logf("%d attached, %d abandoned", attached.Load(), abandoned.Load())
}

// TestRefusedStagingHarmsNoOtherCall: a pod at its limit of staged descriptors is refused, on a
// connection that goes on, and another pod is not.
func TestRefusedStagingHarmsNoOtherCall(t *testing.T) {
	h := newHost(t)
	handler := h.handler("runc")
	for _, id := range []string{"greedy", "other"} {
		req := h.bundle(handler, id, "sleep 1000")
		req.SandboxID = "pod-of-" + id
		h.start(req)
	}
	fds, err := wire.DialFD(filepath.Join(h.state, "shim", wire.FDSocket), wire.Protocol)
	h.must(err)
	defer fds.Close()
	refused := 0
	for i := range 1100 {
		null, err := os.Open(os.DevNull)
		h.must(err)
		err = fds.Put(fmt.Sprint("stdio/greedy/", i), wire.Files{wire.Stdin: null})
		h.must(null.Close())
		if errdefs.IsResourceExhausted(err) {
			refused++
		} else if err != nil {
			t.Fatalf("put %d: %v", i, err)
		}
	}
	if refused == 0 {
		t.Error("no call was refused")
	}
	if _, err := h.exec("greedy", "e", shell("true")); !errdefs.IsResourceExhausted(err) {
		t.Errorf("exec in the pod at its limit: got %v", err)
	}
	e, err := h.exec("other", "e", shell("exit 4"))
	h.must(err)
	if code, err := e.Wait(h.ctx()); code != 4 || err != nil {
		t.Errorf("exec in another pod: got %d %v", code, err)
	}
	for i := range 1100 {
		h.must(fds.Drop(fmt.Sprint("stdio/greedy/", i)))
	}
	e, err = h.exec("greedy", "e", shell("exit 5"))
	h.must(err)
	if code, err := e.Wait(h.ctx()); code != 5 || err != nil {
		t.Errorf("exec after the staged descriptors were dropped: got %d %v", code, err)
	}
}

// TestAbandonedExecIsEnded: an OCI runtime slower than the caller leaves neither process nor record.
func TestAbandonedExecIsEnded(t *testing.T) {
	for name, leave := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 200*time.Millisecond)
		},
		"cancel": func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(200*time.Millisecond, cancel)
			return ctx, cancel
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			slow := filepath.Join(h.state, "slow")
			h.must(os.WriteFile(slow, []byte("#!/bin/sh\ncase \" $* \" in *\" exec \"*) sleep 1;; esac\nexec runc \"$@\"\n"), 0o700))
			handler := h.handler("runc")
			handler.Path = slow
			h.start(h.bundle(handler, "c", "sleep 1000"))
			for i := range 3 {
				ctx, cancel := leave(context.Background())
				_, err := h.client.Exec(ctx, shim.ExecRequest{
					ContainerID: "c", ID: fmt.Sprint("e", i), Process: shell("sleep 777"), Deadline: testTimeout,
				})
				if err == nil || ctx.Err() == nil {
					t.Errorf("exec with a slow runtime: %v", err)
				}
				cancel()
			}
			e, err := h.exec("c", "last", shell("exit 6")) // the others are through by then
			h.must(err)
			if code, err := e.Wait(h.ctx()); code != 6 || err != nil {
				t.Errorf("got %d %v", code, err)
			}
			h.eventually("no exec is on record and no process is left", func() bool {
				records, err := filepath.Glob(filepath.Join(h.state, "shim/c/c/exec-*"))
				procs, procsErr := h.cgroup.Procs("/"+h.name+"/c", true)
				h.must(errors.Join(err, procsErr))
				return len(records) == 0 && len(procs) == 1
			})
		})
	}
}

// TestUncollectedExecIsEnded: a process whose caller never asks for its result is ended, and one whose caller waits is not.
func TestUncollectedExecIsEnded(t *testing.T) {
	h := newHost(t)
	wrapper := filepath.Join(h.state, "berth-shim")
	h.must(os.WriteFile(wrapper, []byte("#!/bin/sh\nexec "+binary+" --collect-timeout 300ms \"$@\"\n"), 0o700))
	h.binary = wrapper
	h.must(h.client.Shutdown(h.ctx())) // the next one has the wrapper's timeout
	h.wg.Wait()
	h.connect()
	h.start(h.bundle(h.handler("runc"), "c", "sleep 1000"))
	waited, err := h.exec("c", "waited", shell("cat; exit 9"))
	h.must(err)
	conn, err := net.Dial("unix", filepath.Join(h.state, "shim", wire.Socket))
	h.must(err)
	link := ttrpc.NewClient(conn)
	defer link.Close()
	process, err := json.Marshal(shell("sleep 777"))
	h.must(err)
	resp, err := wire.NewShimClient(link).Exec(h.ctx(), &wire.ExecRequest{
		ContainerId: "c", Id: "left", Process: process, DeadlineNano: int64(testTimeout), Session: "left",
	})
	h.must(err)
	h.eventually("the process is ended and its record removed", func() bool {
		_, err := os.Stat(filepath.Join(h.state, "shim/c/c/exec-left"))
		return errors.Is(err, os.ErrNotExist) && !alive(int(resp.GetPid()))
	})
	h.must(waited.stdin.Close())
	if code, err := waited.Wait(h.ctx()); code != 9 || err != nil {
		t.Errorf("the process whose caller waits: got %d %v, want 9", code, err)
	}
}

// TestKillOfForkingExec kills a population that forks faster than it can be listed, and nothing else.
func TestKillOfForkingExec(t *testing.T) {
	const limit = 300
	program := filepath.Join(t.TempDir(), "population")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./testdata/population")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			req := h.bundle(h.handler(name), "c", "trap '' CHLD; sleep 1000 & exec sleep 1000", func(s *specs.Spec) {
				s.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(limit))}}
			})
			text, err := os.ReadFile(program)
			h.must(err)
			h.must(os.WriteFile(filepath.Join(req.Bundle, "rootfs/bin/population"), text, 0o755))
			h.start(req)
			e, err := h.client.Exec(h.ctx(), shim.ExecRequest{
				ContainerID: "c", ID: "e", Deadline: testTimeout,
				Process: &specs.Process{Args: []string{"/bin/population", fmt.Sprint(limit / 5)}, Cwd: "/"},
			})
			h.must(err)
			procs := func() int {
				list, err := h.cgroup.Procs("/"+h.name+"/c", true)
				h.must(err)
				return len(list)
			}
			dir, ok := h.cgroup.Dir("pids", "/"+h.name+"/c")
			if !ok {
				t.Fatal("the host cannot limit processes")
			}
			h.eventually("the population grows", func() bool {
				text, err := os.ReadFile(filepath.Join(dir, "pids.current"))
				h.must(err)
				n, err := strconv.Atoi(strings.TrimSpace(string(text)))
				h.must(err)
				return n > limit/2
			})
			if err := e.Kill(h.ctx()); err != nil {
				t.Errorf("kill: %v", err)
			}
			if n := procs(); n != 2 {
				t.Errorf("the container has %d processes, want its own 2", n)
			}
			if frozen, err := h.cgroup.Frozen("/" + h.name + "/c"); frozen || err != nil {
				t.Errorf("the container is frozen: %v %v", frozen, err)
			}
			if code, err := e.Wait(h.ctx()); code != 137 || err != nil {
				t.Errorf("got %d %v", code, err)
			}
			second, err := h.exec("c", "e2", shell("exit 7"))
			h.must(err)
			if code, err := second.Wait(h.ctx()); code != 7 || err != nil {
				t.Errorf("the next exec: got %d %v", code, err)
			}
		})
	}
}

// TestForgedRuntimeArguments: processes of a container that have the arguments of an OCI runtime, and
// come faster than they are looked at, hold no new supervisor up and are not killed.
func TestForgedRuntimeArguments(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		forged := filepath.Join(h.state, "shim/c") + "/c/pid"
		h.start(h.bundle(handler, "c", fmt.Sprintf(`trap '' CHLD
/bin/sh -c 'sleep 1000; :' runc exec --pid-file %[1]s &
while :; do /bin/sh -c 'sleep 0.2; :' runc exec --pid-file %[1]s & sleep 0.01; done`, forged)))
		lasting := func() string {
			procs, err := h.cgroup.Procs("/"+h.name+"/c", true)
			h.must(err)
			for _, pid := range procs {
				line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				if err == nil && strings.Contains(string(line), "sleep 1000; :\x00runc\x00exec") {
					return itoa(pid)
				}
			}
			return ""
		}
		h.eventually("the forged process runs", func() bool { return lasting() != "" })
		before := lasting()
		for range 3 {
			h.killShim()
			h.must(h.client.Ping(h.ctx()))
			e, err := h.exec("c", "e", shell("exit 8"))
			h.must(err)
			if code, err := e.Wait(h.ctx()); code != 8 || err != nil {
				t.Errorf("exec: got %d %v", code, err)
			}
		}
		if after := lasting(); after != before {
			t.Errorf("the process %s of the container was killed", before)
		}
	})
}
