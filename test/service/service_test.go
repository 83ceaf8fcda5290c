package service

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var live = flag.Bool("live", false, "install the unit berthd on this machine, and remove it again")

// TestService: systemd starts, restarts, kills and stops berthd under a running container, which notices nothing; no line of
// its output is lost, its exit code is known, and what systemd keeps for it goes with it.
func TestService(t *testing.T) {
	if !*live {
		t.Log("-live is not given, so nothing is installed")
		return
	}
	h := install(t)
	h.want("Type", "notify")
	h.want("OOMScoreAdjust", "-999")
	h.want("TasksMax", "infinity")
	h.want("LimitNOFILE", "1048576")
	h.want("Delegate", "yes")
	h.want("KillMode", "process")

	id := h.berth("run", "-d", "--name", "counter", "-m", "64m", h.image, "sh", "-c",
		"trap 'exit 9' TERM; i=0; while true; do echo line $i; i=$((i+1)); sleep 0.05; done")
	pid := h.process(id)
	scope := h.cgroup(pid)
	if !strings.HasPrefix(scope, "/berth.slice/berth-") || !strings.Contains(scope, "/berth-"+id+".scope") {
		t.Errorf("the container is in %s, want a scope of its own in a slice of the pod", scope)
	}
	if got := h.systemctl("is-active", "berth-"+id+".scope"); got != "active" {
		t.Errorf("the container's scope is %s, want it active", got)
	}
	for _, event := range []struct {
		name string
		do   func()
	}{
		{"restart", func() { h.systemctl("restart", "berthd") }},
		{"kill", h.kill},
		{"stop", func() {
			h.systemctl("stop", "berthd")
			h.eventually("the log goes on without a daemon", h.logGoesOn("counter"))
			h.systemctl("start", "berthd")
		}},
		{"daemon-reload", func() { h.systemctl("daemon-reload") }},
		{"daemon-reexec", func() { h.systemctl("daemon-reexec") }},
	} {
		event.do()
		if got := h.berth("exec", "counter", "echo", "there"); got != "there" {
			t.Errorf("after %s a command in the container says %q, want there", event.name, got)
		}
		h.eventually("the log goes on after "+event.name, h.logGoesOn("counter"))
		if got := h.read(filepath.Join("/sys/fs/cgroup", scope, "memory.max")); got != "67108864" {
			t.Errorf("after %s the memory limit is %s, want 64 MiB", event.name, got)
		}
		if got := h.process(id); got != pid {
			t.Errorf("after %s the container's process is %s, was %s", event.name, got, pid)
		}
	}
	h.berth("stop", "counter")
	if status := h.berth("inspect", id); !strings.Contains(status, `"exitCode": 9`) {
		t.Errorf("the container's exit code is not 9:\n%s", status)
	}
	for i, line := range strings.Split(h.berth("logs", "counter"), "\n") {
		if want := fmt.Sprintf("line %d", i); line != want {
			t.Fatalf("line %d of the log is %q, want %q", i, line, want)
		}
	}
	h.berth("rm", "counter")
	h.eventually("systemd has nothing of the pod any more", func() error {
		left := strings.Fields(h.systemctl("list-units", "--all", "--plain", "--no-legend", "berth-*.slice", "berth-*.scope"))
		left = slices.DeleteFunc(left, func(word string) bool {
			return !strings.HasPrefix(word, "berth-") || strings.HasPrefix(word, "berth-shim")
		})
		if len(left) > 0 {
			return fmt.Errorf("it has %v", left)
		}
		return nil
	})
}

// kill ends berthd with SIGKILL; systemd starts another.
func (h *host) kill() {
	h.t.Helper()
	before := h.systemctl("show", "--value", "-p", "MainPID", "berthd")
	h.systemctl("kill", "--kill-who=main", "-s", "KILL", "berthd")
	h.awaitOther(before)
}

// awaitOther waits until another process than before serves.
func (h *host) awaitOther(before string) {
	h.t.Helper()
	h.eventually("systemd has started berthd again", func() error {
		if now := h.systemctl("show", "--value", "-p", "MainPID", "berthd"); now == before || now == "0" {
			return fmt.Errorf("its process is %s, was %s", now, before)
		}
		_, err := h.tryBerth("version")
		return err
	})
}

// logGoesOn returns a check that a log has grown since now.
func (h *host) logGoesOn(name string) func() error {
	files, err := filepath.Glob("/var/log/berth/*/" + name + "*")
	if err == nil && len(files) == 0 {
		files, err = filepath.Glob("/var/log/berth/*/*")
	}
	if err != nil || len(files) != 1 {
		h.t.Fatalf("find the log of %s: %v, %v", name, files, err)
	}
	size := func() int64 {
		info, err := os.Stat(files[0])
		if err != nil {
			h.t.Fatal(err)
		}
		return info.Size()
	}
	before := size()
	return func() error {
		if now := size(); now <= before {
			return fmt.Errorf("it has %d bytes", now)
		}
		return nil
	}
}

// eventually waits until check returns nil and fails the test if it never does.
func (h *host) eventually(what string, check func() error) {
	h.t.Helper()
	const step, timeout = 50 * time.Millisecond, time.Minute
	var err error
	for end := time.Now().Add(timeout); time.Now().Before(end); time.Sleep(step) {
		if err = check(); err == nil {
			return
		}
	}
	h.t.Fatalf("wait until %s: %v", what, err)
}
