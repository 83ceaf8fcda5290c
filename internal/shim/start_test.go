package shim_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/ociruntime"
)

func TestExitCodes(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		for _, tc := range []struct {
			id, script string
			code, sig  int
		}{
			{"zero", "true", 0, 0},
			{"seven", "exit 7", 7, 0},
			{"high", "exit 255", 255, 0},
		} {
			h.start(h.bundle(handler, tc.id, tc.script))
			got := h.exit(tc.id)
			if !got.Known || got.Code != tc.code || got.Signal != tc.sig || got.OOM {
				t.Errorf("%s: got %+v", tc.id, got)
			}
			h.must(h.client.Delete(h.ctx(), tc.id))
			h.nothingLeft(tc.id)
		}
	})
}

// TestInitEndsAtOnce runs a program that ends before `run --detach` can return.
func TestInitEndsAtOnce(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		for range 10 {
			h.start(h.bundle(handler, "quick", "", func(s *specs.Spec) { s.Process.Args = []string{"/bin/true"} }))
			if got := h.exit("quick"); !got.Known || got.Code != 0 {
				t.Fatalf("got %+v", got)
			}
			h.must(h.client.Delete(h.ctx(), "quick"))
			h.nothingLeft("quick")
			h.must(os.RemoveAll(filepath.Join(h.state, "containers/quick")))
			h.mu.Lock()
			delete(h.exits, "quick")
			h.mu.Unlock()
		}
	})
}

func TestLogs(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		h.start(h.bundle(handler, "c", "echo out; echo err >&2; echo -n tail; seq 1 20000"))
		h.exit("c")
		got := h.log("c")
		if got["stderr"] != "err\n" || !strings.HasPrefix(got["stdout"], "out\ntail1\n2\n") || !strings.HasSuffix(got["stdout"], "\n20000\n") {
			t.Errorf("got stderr %q, stdout %.40q…", got["stderr"], got["stdout"])
		}
		if n := strings.Count(got["stdout"], "\n"); n != 20001 {
			t.Errorf("got %d lines", n)
		}
	})
}

// TestStdoutOpensAgain: every user of a container may open its own /dev/stdout.
func TestStdoutOpensAgain(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		h.start(h.bundle(handler, "c", "echo hello > /proc/self/fd/1; echo oops > /proc/self/fd/2", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1000}
		}))
		h.exit("c")
		if got := h.log("c"); got["stdout"] != "hello\n" || got["stderr"] != "oops\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestReopenLog(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		req := h.bundle(handler, "c", "i=0; while :; do i=$((i+1)); echo $i; done")
		h.start(req)
		for n := range 20 {
			size := func() int64 { info, err := os.Stat(req.LogPath); h.must(err); return info.Size() }
			h.eventually("the log grows", func() bool { return size() > 0 })
			h.must(os.Rename(req.LogPath, req.LogPath+"."+string(rune('a'+n))))
			h.must(h.client.ReopenLog(h.ctx(), "c"))
			if _, err := os.Stat(req.LogPath); err != nil {
				t.Fatalf("no new log: %v", err)
			}
		}
		h.must(h.client.Kill(h.ctx(), "c", syscall.SIGKILL))
		h.exit("c")
		var all []byte
		for n := range 21 {
			path := req.LogPath + "." + string(rune('a'+n))
			if n == 20 {
				path = req.LogPath
			}
			text, err := os.ReadFile(path)
			h.must(err)
			all = append(all, text...)
		}
		checkSequence(t, parseLog(t, all)["stdout"])
		// Where no file can be made, the old log stays in use.
		if err := h.client.ReopenLog(h.ctx(), "unknown"); !errdefs.IsNotFound(err) {
			t.Errorf("got %v", err)
		}
	})
}

// checkSequence checks that text is the lines 1, 2, 3, …; the last may be cut off.
func checkSequence(t testing.TB, text string) {
	t.Helper()
	lines := strings.Split(text, "\n")
	for i, line := range lines[:len(lines)-1] {
		if want := strconv.Itoa(i + 1); line != want {
			t.Fatalf("line %d of %d is %q, want %q (after %q)", i+1, len(lines), line, want, lines[max(0, i-1)])
		}
	}
	if len(lines) < 10 {
		t.Fatalf("only %d lines", len(lines))
	}
}

func TestSignalsAndKillAll(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		h.start(h.bundle(handler, "trap", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done"))
		h.eventually("it is ready", func() bool { return h.log("trap")["stdout"] == "ready\n" })
		h.must(h.client.Kill(h.ctx(), "trap", syscall.SIGTERM))
		if got := h.exit("trap"); got.Code != 3 || !got.Known {
			t.Errorf("SIGTERM: got %+v", got)
		}
		if err := h.client.Kill(h.ctx(), "trap", syscall.SIGTERM); !errdefs.IsNotFound(err) {
			t.Errorf("kill after the end: got %v", err)
		}
		h.start(h.bundle(handler, "kill", "sleep 1000 & sleep 1000 & wait"))
		h.must(h.client.KillAll(h.ctx(), "kill"))
		if got := h.exit("kill"); got.Code != 137 || got.Signal != 9 {
			t.Errorf("KillAll: got %+v", got)
		}
		h.must(h.client.KillAll(h.ctx(), "kill"))
		if err := h.client.Kill(h.ctx(), "unknown", syscall.SIGTERM); !errdefs.IsNotFound(err) {
			t.Errorf("kill of an unknown one: got %v", err)
		}
		h.must(h.client.Delete(h.ctx(), "unknown"))
		h.start(h.bundle(handler, "run", "sleep 1000"))
		h.must(h.client.Delete(h.ctx(), "run")) // while it runs
		h.nothingLeft("run")
	})
}

// TestLeftoversAreKilled: a container in the host's PID namespace whose init ends
// leaves no process behind, though the process holds the output open.
func TestLeftoversAreKilled(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		req := h.bundle(handler, "c", "setsid sleep 1000 & echo $!; exit 4", func(s *specs.Spec) {
			s.Linux.Namespaces = s.Linux.Namespaces[1:]
		})
		h.start(req)
		if got := h.exit("c"); got.Code != 4 {
			t.Errorf("got %+v", got)
		}
		procs, err := h.cgroup.Procs(req.CgroupPath, true)
		if err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, os.ErrNotExist) || len(procs) > 0 {
			t.Errorf("left: %v %v", procs, err)
		}
	})
}

func TestOOM(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		h.start(h.bundle(handler, "c", "exec dd if=/dev/zero of=/dev/null bs=200M", func(s *specs.Spec) {
			limit := int64(24 << 20)
			s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/zero", Type: "bind", Source: "/dev/zero", Options: []string{"bind"}})
		}))
		if got := h.exit("c"); !got.OOM || got.Code != 137 {
			t.Errorf("got %+v", got)
		}
	})
}

func TestUpdate(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		req := h.bundle(handler, "c", "sleep 1000")
		h.start(req)
		shares := uint64(512)
		h.must(h.client.Update(h.ctx(), "c", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}))
		dir, _ := h.cgroup.Dir("cpu", req.CgroupPath)
		if text, err := os.ReadFile(filepath.Join(dir, "cpu.shares")); err == nil && strings.TrimSpace(string(text)) != "512" {
			t.Errorf("got %q", text)
		}
	})
}

// TestStartFails: a runtime that is missing, hangs or fails, and a program that is
// not there, give a clear error within the deadline and leave nothing.
func TestStartFails(t *testing.T) {
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		broken := func(body string) ociruntime.Handler {
			path := filepath.Join(h.state, "broken-"+strconv.Itoa(len(body)))
			h.must(os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755))
			b := handler
			b.Path = path
			return b
		}
		missing := handler
		missing.Path = "/nowhere/runc"
		for _, tc := range []struct {
			id      string
			handler ociruntime.Handler
			script  string
			want    string
			kind    error
		}{
			{"missing", missing, "true", "/nowhere/runc", errdefs.ErrFailedPrecondition},
			{"hangs", broken("sleep 1000"), "true", "did not finish in time", context.DeadlineExceeded},
			{"fails", broken(`log=/dev/stderr; while [ $# -gt 1 ]; do [ "$1" = --log ] && log=$2; shift; done; echo '{"level":"error","msg":"no luck today"}' > $log; exit 1`), "true", "no luck today", nil},
			{"mumbles", broken("echo 'no luck with stderr' >&2; exit 1"), "true", "no luck with stderr", nil},
			{"noprogram", handler, "", "nonexistent", errdefs.ErrFailedPrecondition},
		} {
			req := h.bundle(tc.handler, tc.id, tc.script, func(s *specs.Spec) {
				if tc.script == "" {
					s.Process.Args = []string{"/nonexistent"}
				}
			})
			if errors.Is(tc.kind, context.DeadlineExceeded) {
				req.Deadline = time.Second
			}
			_, err := h.client.Start(h.ctx(), req)
			if err == nil || !strings.Contains(err.Error(), tc.want) || tc.kind != nil && !errors.Is(err, tc.kind) {
				t.Errorf("%s: got %v, want %v with %q", tc.id, err, tc.kind, tc.want)
			}
			h.nothingLeft(tc.id)
			if _, err := os.Stat(req.LogPath); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: its log is left: %v", tc.id, err)
			}
		}
	})
}

// TestDeleteEndsStart: who deletes a container need not wait until an OCI runtime that hangs has used up its time.
func TestDeleteEndsStart(t *testing.T) {
	h := newHost(t)
	pipe, path := filepath.Join(h.state, "running"), filepath.Join(h.state, "hanging")
	h.must(syscall.Mkfifo(pipe, 0o600))
	h.must(os.WriteFile(path, []byte("#!/bin/sh\necho >"+pipe+"\nsleep 1000 & sleep 1000\n"), 0o755))
	handler := h.handler("runc")
	handler.Path = path
	req := h.bundle(handler, "c", "true")
	req.Deadline = time.Hour
	started := make(chan error, 1)
	go func() {
		_, err := h.client.Start(h.ctx(), req)
		started <- err
	}()
	running, err := os.Open(pipe) // waits until the runtime runs
	h.must(err)
	h.must(running.Close())
	// The runtime's own delete is to work.
	h.must(os.WriteFile(path+".new", []byte("#!/bin/sh\nexit 0\n"), 0o755))
	h.must(os.Rename(path+".new", path))
	h.must(h.client.Delete(h.ctx(), "c"))
	if err := <-started; err == nil {
		t.Error("Start: got no error")
	}
	h.nothingLeft("c")
}

// TestDeleteAmidStart: whenever a start is given up, nothing of it is left when the call returns. crun goes on in a
// process that is in no group of ours, and used to put the container's process into the cgroup that was being removed;
// runc used to leave its own program, bound to a file beside its state.
func TestDeleteAmidStart(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			for n := range 12 {
				id := "c" + itoa(n)
				req := h.bundle(h.handler(name), id, "sleep 1000")
				started := make(chan error, 1)
				go func() {
					_, err := h.client.Start(h.ctx(), req)
					started <- err
				}()
				time.Sleep(time.Duration(n) * 3 * time.Millisecond) // any moment will do
				h.must(h.client.Delete(h.ctx(), id))
				if err := <-started; err != nil { // it may have got through before
					t.Logf("start %d: %v", n, err)
				}
				h.must(h.client.Delete(h.ctx(), id)) // the start may not have begun when it was deleted first
				h.must(h.cgroup.Remove("/" + h.name + "/" + id))
				h.nothingLeft(id)
			}
		})
	}
}

func TestStartJoins(t *testing.T) {
	h := newHost(t)
	req := h.bundle(h.handler("runc"), "c", "sleep 1000")
	type result struct {
		pid int
		err error
	}
	results := make(chan result, 4)
	for range 4 {
		go func() {
			started, err := h.client.Start(h.ctx(), req)
			results <- result{started.PID, err}
		}()
	}
	first := <-results
	for range 3 {
		if r := <-results; r != first || r.err != nil || r.pid == 0 {
			t.Errorf("got %+v and %+v", first, r)
		}
	}
}
