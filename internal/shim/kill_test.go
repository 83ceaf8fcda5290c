package shim_test

import (
	"bufio"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/shim"
)

func itoa(n int) string { return strconv.Itoa(n) }

// killShimOf kills the supervisor without a client.
func (h *host) killShimOf(t testing.TB) {
	t.Helper()
	pid := h.shimPID()
	h.must(syscall.Kill(pid, syscall.SIGKILL))
	h.eventually("the killed supervisor is gone", func() bool {
		reapAdopted()
		return !alive(pid)
	})
}

// shimPID finds the supervisor of this host by its command line.
func (h *host) shimPID() int {
	h.t.Helper()
	entries, err := os.ReadDir("/proc")
	h.must(err)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && strings.HasPrefix(string(line), binary+"\x00") && strings.Contains(string(line), h.state+"\x00") {
			return pid
		}
	}
	h.t.Fatal("no supervisor")
	return 0
}

// TestKilledSupervisorLosesNothing kills the supervisor again and again while a
// container writes numbered lines as fast as it can: none is lost, none comes
// twice, the container lives, and its exit code is known.
func TestKilledSupervisorLosesNothing(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		started := h.start(h.bundle(handler, "c", "trap 'exit 9' TERM; i=0; while :; do i=$((i+1)); echo $i; done"))
		for range 25 {
			time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond) // the point of the test: any instant
			h.killShim()
			h.must(h.client.Ping(h.ctx()))
		}
		list, err := h.client.List(h.ctx())
		if err != nil || len(list) != 1 || !list[0].Running || list[0].PID != started.PID {
			t.Fatalf("got %+v %v", list, err)
		}
		h.must(h.client.Kill(h.ctx(), "c", syscall.SIGTERM))
		if got := h.exit("c"); !got.Known || got.Code != 9 {
			t.Errorf("got %+v", got)
		}
		checkSequence(t, h.log("c")["stdout"])
		h.must(h.client.Delete(h.ctx(), "c"))
		h.nothingLeft("c")
	})
}

// TestExitWhileNoSupervisor: the container ends after its supervisor was killed.
// The client's descriptors keep its last output and its exit code.
func TestExitWhileNoSupervisor(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		for _, reaped := range []bool{false, true} {
			id := "c" + strconv.FormatBool(reaped)
			flag := filepath.Join(h.state, "containers", id, "rootfs/tmp/go")
			started := h.start(h.bundle(handler, id, "echo first; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo last; exit 23"))
			h.eventually("it is up", func() bool { return h.log(id)["stdout"] == "first\n" })
			h.lazy.Store(!reaped)
			stopClientDuring(h, func() {
				h.killShim()
				h.must(os.WriteFile(flag, nil, 0o600))
				h.eventually("it ends", func() bool { return !alive(started.PID) })
				if reaped {
					reapAdopted()
				}
			})
			got := h.exit(id)
			h.lazy.Store(false)
			if !got.Known || got.Code != 23 {
				t.Errorf("reaped %v: got %+v", reaped, got)
			}
			if got := h.log(id)["stdout"]; got != "first\nlast\n" {
				t.Errorf("reaped %v: log %q", reaped, got)
			}
		}
	})
}

// stopClientDuring keeps the client from starting a successor while fn runs.
func stopClientDuring(h *host, fn func()) {
	h.t.Helper()
	lock, err := os.OpenFile(filepath.Join(h.state, "shim/launch.lock"), os.O_RDWR, 0)
	h.must(err)
	defer lock.Close()
	h.must(syscall.Flock(int(lock.Fd()), syscall.LOCK_EX))
	fn()
}

// TestExitWithNobodyThere: daemon and supervisor are both gone when the container
// ends, and another process reaps it. Its status is unknown then, and never 0.
func TestExitWithNobodyThere(t *testing.T) {
	h := newHost(t)
	started := h.start(h.bundle(h.handler("runc"), "c", "while [ ! -e /tmp/go ]; do sleep 0.01; done"))
	h.disconnect()
	h.killShimOf(t)
	h.must(os.WriteFile(filepath.Join(h.state, "containers/c/rootfs/tmp/go"), nil, 0o600))
	h.eventually("it ends", func() bool { return !alive(started.PID) })
	reapAdopted()
	h.connect()
	if got := h.exit("c"); got.Known || got.Code == 0 || got.Reason == "" {
		t.Errorf("got %+v", got)
	}
}

// TestExitWhileNoDaemon: the supervisor keeps the exit for the next daemon, and the next supervisor does too.
func TestExitWhileNoDaemon(t *testing.T) {
	h := newHost(t)
	started := h.start(h.bundle(h.handler("runc"), "c", "while [ ! -e /tmp/go ]; do sleep 0.01; done; echo bye; exit 12"))
	h.disconnect()
	h.must(os.WriteFile(filepath.Join(h.state, "containers/c/rootfs/tmp/go"), nil, 0o600))
	h.eventually("it ends", func() bool { return !alive(started.PID) })
	for range 2 {
		h.connect()
		if got := h.exit("c"); !got.Known || got.Code != 12 {
			t.Errorf("got %+v", got)
		}
		h.disconnect()
		h.killShimOf(t)
	}
	h.connect()
	if got := h.log("c")["stdout"]; got != "bye\n" {
		t.Errorf("got %q", got)
	}
}

// TestKilledDuringStart kills the supervisor at many points of a start. The start
// is repeated by the client and succeeds, or was through; there is one container.
func TestKilledDuringStart(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		for _, id := range []string{"other1", "other2"} { // they are taken over while the start is undone
			h.start(h.bundle(handler, id, "exec sleep 1000"))
		}
		for round := range 16 {
			id := "c" + itoa(round)
			req := h.bundle(handler, id, "echo up; exec sleep 1000")
			done := make(chan error, 1)
			pid := h.client.PID()
			go func() {
				_, err := h.client.Start(h.ctx(), req)
				done <- err
			}()
			time.Sleep(time.Duration(round) * 3 * time.Millisecond) // the point of the test: many instants
			h.must(syscall.Kill(pid, syscall.SIGKILL))
			if err := <-done; err != nil {
				h.dump()
				t.Fatalf("round %d: %v", round, err)
			}
			h.eventually("it is up", func() bool { return strings.HasPrefix(h.log(id)["stdout"], "up\n") })
			procs, err := h.cgroup.Procs(req.CgroupPath, true)
			if err != nil || len(procs) != 1 {
				t.Fatalf("round %d: processes %v %v", round, procs, err)
			}
			h.must(h.client.Delete(h.ctx(), id))
			h.nothingLeft(id)
			reapAdopted()
		}
		for _, id := range []string{"other1", "other2"} {
			h.must(h.client.KillAll(h.ctx(), id))
			h.exit(id)
			h.must(h.client.Delete(h.ctx(), id))
		}
	})
}

// TestKilledDuringExec: an exec whose supervisor is killed goes on, and its code is known.
func TestKilledDuringExec(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		h.start(h.bundle(handler, "c", "sleep 1000"))
		e, err := h.exec("c", "e", shell("cat; exit 8"))
		h.must(err)
		h.killShim()
		_, err = e.stdin.WriteString("still here")
		h.must(err)
		e.stdin.Close()
		if got := h.read(e.stdout); got != "still here" {
			t.Errorf("got %q", got)
		}
		if code, err := e.Wait(h.ctx()); code != 8 || err != nil {
			t.Errorf("got %d %v", code, err)
		}
		for round := range 8 {
			pid := h.client.PID()
			failed := make(chan error, 1)
			go func() {
				e, err := h.exec("c", "k"+itoa(round), shell("sleep 1000"))
				if err == nil {
					err = e.Kill(h.ctx())
				}
				failed <- err
			}()
			time.Sleep(time.Duration(round) * 4 * time.Millisecond) // the point of the test: many instants
			h.must(syscall.Kill(pid, syscall.SIGKILL))
			if err := <-failed; err != nil && !errdefs.IsUnavailable(err) {
				t.Errorf("round %d: %v", round, err)
			}
			h.must(h.client.Ping(h.ctx()))
		}
		h.eventually("no exec is left", func() bool {
			pids, err := h.cgroup.Procs("/"+h.name+"/c", true)
			h.must(err)
			return len(pids) == 1
		})
	})
}

// TestTerminalSurvivesItsSupervisor: the client keeps the terminal, so the
// container is not hung up and goes on to be logged.
func TestTerminalSurvivesItsSupervisor(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		req := h.bundle(handler, "c", "echo one; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo two; exit 4", terminal)
		h.start(req)
		h.eventually("it is up", func() bool { return h.log("c")["stdout"] == "one\n" })
		h.killShim()
		h.must(h.client.Ping(h.ctx()))
		h.must(os.WriteFile(filepath.Join(req.Bundle, "rootfs/tmp/go"), nil, 0o600))
		if got := h.exit("c"); !got.Known || got.Code != 4 {
			t.Errorf("got %+v", got)
		}
		if got := h.log("c")["stdout"]; got != "one\ntwo\n" {
			t.Errorf("got %q", got)
		}
	})
}

// TestStdinOnceSurvivesItsSupervisor: the client keeps the write end, so the
// container does not read the end of its stdin when the supervisor is killed.
func TestStdinOnceSurvivesItsSupervisor(t *testing.T) {
	h := newHost(t)
	req := h.bundle(h.handler("runc"), "c", "cat; exit 6")
	req.Stdin, req.StdinOnce = true, true
	h.start(req)
	h.killShim()
	a, err := h.client.Attach(h.ctx(), "c", true)
	h.must(err)
	_, err = a.Stdin.WriteString("hello\n")
	h.must(err)
	h.must(a.CloseStdin(h.ctx()))
	if got := h.exit("c"); got.Code != 6 {
		t.Errorf("got %+v", got)
	}
	h.must(a.Close())
	if got := h.log("c")["stdout"]; got != "hello\n" {
		t.Errorf("got %q", got)
	}
}

// TestKilledClient kills clients with SIGKILL, and then both at once.
func TestKilledClient(t *testing.T) {
	h := newHost(t)
	started := h.start(h.bundle(h.handler("runc"), "c", "i=0; while :; do i=$((i+1)); echo $i; done"))
	h.disconnect()
	for round := range 6 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), clientEnv+"="+h.state, "BERTH_SHIM_BINARY="+binary, "BERTH_SHIM_INSTANCE="+h.name)
		out, err := cmd.StdoutPipe()
		h.must(err)
		h.must(cmd.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || line != "connected\n" {
			t.Fatalf("client said %q: %v", line, err)
		}
		h.must(cmd.Process.Kill())
		_ = cmd.Wait() // killed
		if round%2 == 1 {
			h.killShimOf(t)
		}
	}
	h.connect()
	list, err := h.client.List(h.ctx())
	if err != nil || len(list) != 1 || !list[0].Running || list[0].PID != started.PID {
		t.Fatalf("got %+v %v", list, err)
	}
	h.must(h.client.Kill(h.ctx(), "c", syscall.SIGKILL))
	if got := h.exit("c"); got.Signal != 9 || !got.Known {
		t.Errorf("got %+v", got)
	}
	checkSequence(t, h.log("c")["stdout"])
}

// TestUpgrade replaces the program under running containers, a terminal, an
// attachment and an exec: same process, nothing is lost.
func TestUpgrade(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		counter := h.start(h.bundle(handler, "count", "i=0; while :; do i=$((i+1)); echo $i; done"))
		req := h.bundle(handler, "term", "cat", terminal)
		req.Stdin = true
		h.start(req)
		a, err := h.client.Attach(h.ctx(), "term", true)
		h.must(err)
		e, err := h.exec("count", "e", shell("cat; exit 11"))
		h.must(err)
		pid := h.client.PID()
		for range 5 {
			h.must(h.client.Upgrade(h.ctx(), binary))
		}
		if h.client.PID() != pid {
			t.Errorf("PID %d became %d", pid, h.client.PID())
		}
		_, err = a.Stdin.WriteString("word\n")
		h.must(err)
		readTerminal(h, a.Stdout, "word\r\n")
		h.must(a.Close())
		e.stdin.Close()
		if code, err := e.Wait(h.ctx()); code != 11 || err != nil {
			t.Errorf("exec: got %d %v", code, err)
		}
		list, err := h.client.List(h.ctx())
		if err != nil || len(list) != 2 {
			t.Fatalf("got %+v %v", list, err)
		}
		if err := h.client.Upgrade(h.ctx(), "/bin/false"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("a program that does not work: got %v", err)
		}
		h.must(h.client.Kill(h.ctx(), "count", syscall.SIGKILL))
		if got := h.exit("count"); got.Signal != 9 || !got.Known || counter.PID == 0 {
			t.Errorf("got %+v", got)
		}
		checkSequence(t, h.log("count")["stdout"])
	})
}

// TestOneSupervisor: clients that connect at once find one supervisor.
func TestOneSupervisor(t *testing.T) {
	h := newHost(t)
	clients := make(chan *shim.Client, 6)
	for range 6 {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
			defer cancel()
			c, err := shim.Connect(ctx, h.options())
			if err != nil {
				t.Error(err)
			}
			clients <- c
		}()
	}
	for range 6 {
		c := <-clients
		if c != nil && c.PID() != h.client.PID() {
			t.Errorf("supervisors %d and %d", c.PID(), h.client.PID())
		}
		if c != nil {
			h.must(c.Close())
		}
	}
}

// TestConnectFails: a program that is missing or does not serve is named within the deadline.
func TestConnectFails(t *testing.T) {
	for name, tc := range map[string]struct{ path, want string }{
		"missing": {"/nowhere/berth-shim", "/nowhere/berth-shim"},
		"silent":  {"/bin/true", "ended before it served"},
	} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			_, err := shim.Connect(ctx, shim.Options{State: state, Binary: tc.path})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}
