package shim_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/shim"
)

// execOutput is what a test reads of an exec.
type execOutput struct {
	*shim.Exec
	stdin          *os.File
	stdout, stderr *os.File
}

func shell(script string) *specs.Process {
	return &specs.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}, Cwd: "/"}
}

// exec starts a process with three pipes.
func (h *host) exec(container, id string, process *specs.Process) (*execOutput, error) {
	h.t.Helper()
	var r, w [3]*os.File
	for i := range 3 {
		var err error
		r[i], w[i], err = os.Pipe()
		h.must(err)
	}
	out := &execOutput{stdin: w[0], stdout: r[1], stderr: r[2]}
	h.t.Cleanup(out.close)
	var err error
	out.Exec, err = h.client.Exec(h.ctx(), shim.ExecRequest{
		ContainerID: container, ID: id, Process: process, Stdin: r[0], Stdout: w[1], Stderr: w[2], Deadline: testTimeout,
	})
	return out, err
}

func (o *execOutput) close() {
	for _, f := range []*os.File{o.stdin, o.stdout, o.stderr} {
		f.Close()
	}
}

func (h *host) read(f *os.File) string {
	h.t.Helper()
	h.must(f.SetReadDeadline(time.Now().Add(testTimeout)))
	text, err := io.ReadAll(f)
	h.must(err)
	return string(text)
}

func TestExec(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		h.start(h.bundle(handler, "c", "sleep 1000"))
		e, err := h.exec("c", "e1", shell("cat; echo oops >&2; exit 5"))
		h.must(err)
		_, err = e.stdin.WriteString("hello")
		h.must(err)
		e.stdin.Close()
		if out, errs := h.read(e.stdout), h.read(e.stderr); out != "hello" || errs != "oops\n" {
			t.Errorf("got %q and %q", out, errs)
		}
		if code, err := e.Wait(h.ctx()); code != 5 || err != nil {
			t.Errorf("got %d %v", code, err)
		}
		if _, err := e.Wait(h.ctx()); !errdefs.IsNotFound(err) {
			t.Errorf("second wait: got %v", err)
		}
		e, err = h.exec("c", "e2", shell("kill -9 $$"))
		h.must(err)
		if code, err := e.Wait(h.ctx()); code != 137 || err != nil {
			t.Errorf("got %d %v", code, err)
		}
	})
}

// TestExecEndsAtOnce: no status is lost, however soon the process ends.
func TestExecEndsAtOnce(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		h.start(h.bundle(handler, "c", "sleep 1000"))
		for i := range 20 {
			e, err := h.exec("c", "same", &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"})
			h.must(err)
			if code, err := e.Wait(h.ctx()); code != 0 || err != nil {
				t.Fatalf("round %d: got %d %v", i, code, err)
			}
			e.close()
		}
	})
}

func TestExecFails(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		h.start(h.bundle(handler, "c", "sleep 1000"))
		_, err := h.exec("c", "e", &specs.Process{Args: []string{"/nonexistent"}, Cwd: "/"})
		if err == nil || !strings.Contains(err.Error(), "nonexistent") || !errdefs.IsFailedPrecondition(err) {
			t.Errorf("no program: got %v", err)
		}
		if _, err := h.exec("unknown", "e", shell("true")); !errdefs.IsNotFound(err) {
			t.Errorf("no container: got %v", err)
		}
		if _, err := h.exec("c", "../e", shell("true")); !errdefs.IsInvalidArgument(err) {
			t.Errorf("bad ID: got %v", err)
		}
		h.must(h.client.Kill(h.ctx(), "c", syscall.SIGKILL))
		h.exit("c")
		if _, err := h.exec("c", "e", shell("true")); !errdefs.IsNotFound(err) {
			t.Errorf("ended container: got %v", err)
		}
	})
}

// TestExecKill: the exec'd process, what it started in the background and in a
// session of its own are killed, and nothing else.
func TestExecKill(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		req := h.bundle(handler, "c", "sleep 1000 & wait")
		h.start(req)
		procs := func() int {
			pids, err := h.cgroup.Procs(req.CgroupPath, true)
			h.must(err)
			n := 0
			for _, pid := range pids {
				if alive(pid) {
					n++
				}
			}
			return n
		}
		h.eventually("the container is up", func() bool { return procs() == 2 })
		e, err := h.exec("c", "e", shell("sleep 1001 & (sleep 1002 &) ; setsid sh -c 'sleep 1003 & sleep 1004' & echo up; wait"))
		h.must(err)
		h.eventually("the exec is up", func() bool { return procs() >= 2+5 })
		ctx, cancel := context.WithTimeout(h.ctx(), 20*time.Millisecond)
		defer cancel()
		if _, err := e.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		h.must(e.Kill(h.ctx()))
		if n := procs(); n != 2 {
			t.Errorf("%d processes are left, want the container's 2", n)
		}
		if code, err := e.Wait(h.ctx()); code != 137 || err != nil {
			t.Errorf("got %d %v", code, err)
		}
		if got := h.read(e.stdout); got != "up\n" {
			t.Errorf("got %q", got)
		}
		if list, err := h.client.List(h.ctx()); err != nil || !list[0].Running {
			t.Errorf("got %+v %v", list, err)
		}
	})
}

// TestExecIsEndedWithItsDaemon: when another client takes over, no reader is left for the
// output of the execs of the first, and no timer for their deadlines.
func TestExecIsEndedWithItsDaemon(t *testing.T) {
	h := newHost(t)
	req := h.bundle(h.handler("runc"), "c", "sleep 1000")
	h.start(req)
	e, err := h.exec("c", "e", shell("sleep 1001"))
	h.must(err)
	h.disconnect()
	h.connect()
	h.eventually("the exec is ended", func() bool { return !alive(e.PID) })
	if list, err := h.client.List(h.ctx()); err != nil || len(list) != 1 || !list[0].Running {
		t.Errorf("got %+v %v", list, err)
	}
}

func TestExecTerminal(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		h.start(h.bundle(handler, "c", "sleep 1000"))
		process := shell("read x; stty size; echo got $x; exit 6")
		process.Terminal = true
		e, err := h.client.Exec(h.ctx(), shim.ExecRequest{ContainerID: "c", ID: "e", Process: process, Terminal: true})
		h.must(err)
		defer e.Console.Close()
		h.must(e.Resize(h.ctx(), 120, 40))
		_, err = e.Console.WriteString("word\n")
		h.must(err)
		if got := readTerminal(h, e.Console, "got word"); !strings.Contains(got, "40 120") {
			t.Errorf("got %q", got)
		}
		if code, err := e.Wait(h.ctx()); code != 6 || err != nil {
			t.Errorf("got %d %v", code, err)
		}
	})
}

// readTerminal reads until a text has come.
func readTerminal(h *host, f *os.File, until string) string {
	h.t.Helper()
	h.must(f.SetReadDeadline(time.Now().Add(testTimeout)))
	var all string
	buf := make([]byte, 4096)
	for !strings.Contains(all, until) {
		n, err := f.Read(buf)
		all += string(buf[:n])
		if err != nil {
			h.t.Fatalf("after %q: %v", all, err)
		}
	}
	return all
}

func TestTerminal(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		req := h.bundle(handler, "c", "echo ready; read x; stty size; echo got $x; exit 3", func(s *specs.Spec) { s.Process.Terminal = true })
		req.Stdin = true
		h.start(req)
		a, err := h.client.Attach(h.ctx(), "c", true)
		h.must(err)
		if !a.Terminal || a.Stderr != nil || a.Stdin == nil {
			t.Fatalf("got %+v", a)
		}
		h.must(a.Resize(h.ctx(), 100, 30))
		_, err = a.Stdin.WriteString("word\n")
		h.must(err)
		if got := h.read(a.Stdout); !strings.Contains(got, "30 100") || !strings.Contains(got, "got word") {
			t.Errorf("got %q", got)
		}
		h.must(a.Close())
		if got := h.exit("c"); got.Code != 3 {
			t.Errorf("got %+v", got)
		}
		if got := h.log("c")["stdout"]; !strings.Contains(got, "ready\n") || !strings.HasSuffix(got, "got word\n") {
			t.Errorf("log: %q", got)
		}
	})
}

// TestTerminalReopened: a container that closes all ends of its terminal and opens it again is logged on.
func TestTerminalReopened(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		h.start(h.bundle(handler, "c", "t=$(readlink /proc/self/fd/0); echo one; exec <&- >&- 2>&-; sleep 0.2; exec >$t; echo two", terminal))
		h.exit("c")
		if got := h.log("c")["stdout"]; got != "one\ntwo\n" {
			t.Errorf("log: %q", got)
		}
	})
}

func TestAttach(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		req := h.bundle(handler, "once", "cat; echo bye >&2; exit 2")
		req.Stdin, req.StdinOnce = true, true
		h.start(req)
		a, err := h.client.Attach(h.ctx(), "once", true)
		h.must(err)
		watcher, err := h.client.Attach(h.ctx(), "once", false)
		h.must(err)
		_, err = a.Stdin.WriteString("hello\n")
		h.must(err)
		h.must(a.CloseStdin(h.ctx()))
		if out, errs := h.read(a.Stdout), h.read(a.Stderr); out != "hello\n" || errs != "bye\n" {
			t.Errorf("got %q and %q", out, errs)
		}
		if out := h.read(watcher.Stdout); out != "hello\n" {
			t.Errorf("the second one: got %q", out)
		}
		h.must(errors.Join(a.Close(), watcher.Close()))
		if got := h.exit("once"); got.Code != 2 {
			t.Errorf("got %+v", got)
		}
		if got := h.log("once"); got["stdout"] != "hello\n" || got["stderr"] != "bye\n" {
			t.Errorf("log: %q", got)
		}
	})
}

// TestStdinStaysOpen: without stdin_once stdin survives attachments, supervisors and daemons.
func TestStdinStaysOpen(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		req := h.bundle(handler, "c", "cat")
		req.Stdin = true
		h.start(req)
		for round := range 4 {
			a, err := h.client.Attach(h.ctx(), "c", true)
			h.must(err)
			line := string(rune('a'+round)) + "\n"
			_, err = a.Stdin.WriteString(line)
			h.must(err)
			h.must(a.CloseStdin(h.ctx()))
			h.eventually("the line is logged", func() bool { return strings.HasSuffix(h.log("c")["stdout"], line) })
			h.must(a.Close())
			switch round {
			case 1:
				h.killShim()
				h.eventually("a successor", func() bool { return h.client.Ping(h.ctx()) == nil })
			case 2:
				h.disconnect()
				h.killShimOf(t)
				h.connect()
			}
		}
		if list, err := h.client.List(h.ctx()); err != nil || !list[0].Running {
			t.Errorf("got %+v %v", list, err)
		}
	})
}

// TestSlowReaderIsDropped: a client that does not read is detached and gets an error; the log goes on.
func TestSlowReaderIsDropped(t *testing.T) {
	h := newHost(t)
	req := h.bundle(h.handler("runc"), "c", "read x; yes 0123456789 | head -c 4000000; echo end; sleep 1000")
	req.Stdin = true
	h.start(req)
	slow, err := h.client.Attach(h.ctx(), "c", true)
	h.must(err)
	_, err = slow.Stdin.WriteString("go\n")
	h.must(err)
	h.eventually("everything is logged", func() bool { return strings.HasSuffix(h.log("c")["stdout"], "end\n") })
	if n := len(h.log("c")["stdout"]); n != 4000000+len("end\n") {
		t.Errorf("%d bytes are logged", n)
	}
	if n := len(h.read(slow.Stdout)); n == 0 || n >= 4000000 {
		t.Errorf("the slow reader got %d bytes", n)
	}
	if err := slow.Close(); err == nil || !strings.Contains(err.Error(), "output is incomplete") {
		t.Errorf("closing the attachment: got %v, want an error about incomplete output", err)
	}
}
