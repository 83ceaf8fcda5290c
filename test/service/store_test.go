package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestStore: berthd and berth-shim are killed at once. Systemd has kept their descriptors and hands them to the next daemon, so a
// container with a terminal lives on, is not hung up, and its log goes on. In the end systemd keeps nothing.
func TestStore(t *testing.T) {
	if !*live {
		t.Log("-live is not given, so nothing is installed")
		return
	}
	h := install(t)
	h.want("FileDescriptorStoreMax", "12288")
	id := h.berth("run", "-d", "-t", "--name", "shell", h.image, "sh", "-c",
		"trap 'echo hung up' HUP; i=0; while true; do echo line $i; i=$((i+1)); sleep 0.05; done")
	pid := h.process(id)
	for range 2 {
		h.keeps("3") // the container's pidfd, its terminal and the FIFO behind that
		h.killBoth()
		h.eventually("the log goes on", h.logGoesOn("shell"))
		if got := h.process(id); got != pid {
			t.Errorf("the container's process is %s, was %s", got, pid)
		}
		if got := h.berth("exec", "shell", "echo", "there"); got != "there" {
			t.Errorf("a command in the container says %q, want there", got)
		}
	}
	h.systemctl("restart", "berthd")
	h.keeps("3")
	for i, line := range strings.Split(h.berth("logs", "shell"), "\n") {
		if want := fmt.Sprintf("line %d", i); strings.TrimSpace(line) != want {
			t.Fatalf("line %d of the log is %q, want %q", i, line, want)
		}
	}
	h.berth("rm", "-f", "shell")
	h.keeps("0")
}

// keeps waits until systemd keeps so many descriptors for the service.
func (h *host) keeps(want string) {
	h.t.Helper()
	h.eventually("systemd keeps "+want+" descriptors", func() error {
		if got := h.systemctl("show", "--value", "-p", "NFileDescriptorStore", "berthd"); got != want {
			return fmt.Errorf("it keeps %s", got)
		}
		return nil
	})
}

// killBoth ends berthd and berth-shim with SIGKILL; systemd starts another berthd, which starts another berth-shim.
func (h *host) killBoth() {
	h.t.Helper()
	daemon, err := strconv.Atoi(h.systemctl("show", "--value", "-p", "MainPID", "berthd"))
	if err != nil {
		h.t.Fatal(err)
	}
	shim := h.shimPID()
	if err := errors.Join(syscall.Kill(daemon, syscall.SIGKILL), syscall.Kill(shim, syscall.SIGKILL)); err != nil {
		h.t.Fatal(err)
	}
	h.awaitOther(strconv.Itoa(daemon))
}

// shimPID finds the process of berth-shim.
func (h *host) shimPID() int {
	h.t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, name := range names {
		if data, err := os.ReadFile(name); err != nil || strings.TrimSpace(string(data)) != "berth-shim" {
			continue // another program, or it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			h.t.Fatal(err)
		}
		return pid
	}
	h.t.Fatal("there is no berth-shim")
	return 0
}
