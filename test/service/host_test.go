package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-runtime/berth/test/command"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/registry"
)

const (
	unitSource = "../../packaging/berthd.service"
	unitFile   = "/etc/systemd/system/berthd.service"
	installed  = "/usr/local/bin"
	certsDir   = "/etc/berth/certs.d"
	// callDeadline bounds each program that a test runs.
	callDeadline = 2 * time.Minute
)

// host is a machine with Berth installed.
type host struct {
	t     *testing.T
	image string
}

// install installs and starts berthd for the length of t.
func install(t *testing.T) *host {
	t.Helper()
	bin := os.Getenv("BERTH_BIN")
	if bin == "" {
		t.Fatal("BERTH_BIN does not name the directory of the programs")
	}
	h := &host{t: t}
	reg := registry.Run(t, registry.Options{})
	h.put(filepath.Join(certsDir, reg.Host, "hosts.toml"), fmt.Sprintf("server = %q\n", "http://"+reg.Host))
	busybox, err := imagefactory.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	h.image = imagefactory.MustPush(t, reg.Host, "busybox:1", busybox)
	unit, err := os.ReadFile(unitSource)
	if err != nil {
		t.Fatal(err)
	}
	h.put(unitFile, string(unit))
	for _, program := range []string{"berthd", "berth-shim", "berth"} {
		link := filepath.Join(installed, program)
		if err := os.Symlink(filepath.Join(bin, program), link); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.must(os.Remove(link)) })
	}
	h.systemctl("daemon-reload")
	h.systemctl("start", "berthd")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the journal of berthd:\n%s", h.run("journalctl", "--no-pager", "-u", "berthd"))
		}
		h.systemctl("stop", "berthd")
	})
	return h
}

// put writes a file and removes it when the test ends.
func (h *host) put(file, text string) {
	h.t.Helper()
	h.must(errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)))
	h.t.Cleanup(func() { h.must(os.Remove(file)) })
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Error(err)
	}
}

// run runs a program that must succeed.
func (h *host) run(argv ...string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.t.Context()), callDeadline)
	defer cancel()
	out, err := command.Run(ctx, "", argv...)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

func (h *host) systemctl(args ...string) string {
	h.t.Helper()
	return h.run(append([]string{"systemctl"}, args...)...)
}

func (h *host) berth(args ...string) string {
	h.t.Helper()
	return h.run(append([]string{filepath.Join(installed, "berth")}, args...)...)
}

func (h *host) tryBerth(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), callDeadline)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(installed, "berth"), args...).CombinedOutput()
	return string(out), err
}

// want compares a property of the unit.
func (h *host) want(property, value string) {
	h.t.Helper()
	if got := h.systemctl("show", "--value", "-p", property, "berthd"); got != value {
		h.t.Errorf("%s of the service is %q, want %q", property, got, value)
	}
}

func (h *host) read(file string) string {
	h.t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// process is the container's first process, as the OCI runtime knows it.
func (h *host) process(id string) string {
	h.t.Helper()
	files, err := filepath.Glob("/run/berth/runtime/*/" + id)
	if err != nil || len(files) != 1 {
		h.t.Fatalf("find the OCI runtime of container %s: %v, %v", id, files, err)
	}
	root := filepath.Dir(files[0])
	var state struct{ PID int }
	if err := json.Unmarshal([]byte(h.run(filepath.Base(root), "--root", root, "state", id)), &state); err != nil || state.PID == 0 {
		h.t.Fatalf("find the process of container %s: %d, %v", id, state.PID, err)
	}
	return fmt.Sprint(state.PID)
}

// cgroup is where a process is in the v2 hierarchy.
func (h *host) cgroup(pid string) string {
	h.t.Helper()
	return strings.TrimPrefix(h.read("/proc/"+pid+"/cgroup"), "0::")
}
