package shim_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/test/criu"
)

// counter counts on stdout; what it reads from stdin it repeats on stderr.
const counter = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done & while read line; do echo $line >&2; done; wait"

// checkpointDirs makes the directories that a checkpoint writes into.
func (h *host) checkpointDirs(name string) shim.CheckpointRequest {
	h.t.Helper()
	req := shim.CheckpointRequest{Images: filepath.Join(h.state, name, "checkpoint"), Work: filepath.Join(h.state, name)}
	h.must(os.MkdirAll(req.Images, 0o700))
	return req
}

// lastCount is the number that a counter has logged last.
func (h *host) lastCount(id string) int {
	h.t.Helper()
	lines := strings.Fields(h.log(id)["stdout"])
	if len(lines) == 0 {
		return -1
	}
	n, err := strconv.Atoi(lines[len(lines)-1])
	h.must(err)
	return n
}

// TestCheckpoint: a container goes on after a checkpoint, and another one goes
// on from it: same count, own log, stdin, exit code, and the supervisor may be
// killed as with any other. Where CRIU does not work the error says why.
func TestCheckpoint(t *testing.T) {
	h := newHost(t)
	handler := h.handler("runc")
	req := h.bundle(handler, "c", counter)
	req.Stdin = true
	h.start(req)
	h.eventually("it counts", func() bool { return h.lastCount("c") > 3 })
	to := h.checkpointDirs("cp")
	to.ID = "c"
	err := h.client.Checkpoint(h.ctx(), to)
	after := h.lastCount("c")
	h.eventually("it goes on counting", func() bool { return h.lastCount("c") > after+3 })
	if !criu.Works(t) {
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "CRIU says: ") {
			t.Errorf("got %v, want a failed precondition in CRIU's words", err)
		}
		return
	}
	h.must(err)
	for _, file := range []string{"cp/checkpoint/inventory.img", "cp/checkpoint/stdio.json", "cp/dump.log", "cp/stats-dump"} {
		if _, err := os.Stat(filepath.Join(h.state, file)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(h.state, "shim/c/c/criu.conf")); err == nil {
		t.Error("CRIU's options are left")
	}

	again := h.bundle(handler, "r", counter)
	again.Stdin, again.Restore = true, &shim.Restore{Images: to.Images}
	started := h.start(again)
	h.eventually("the restored one counts", func() bool { return h.lastCount("r") > after })
	if first := strings.Fields(h.log("r")["stdout"])[0]; first == "0" {
		t.Error("the restored one counts from the beginning")
	}
	if !alive(started.PID) {
		t.Errorf("process %d is not there", started.PID)
	}
	attached, err := h.client.Attach(h.ctx(), "r", true)
	h.must(err)
	_, err = attached.Stdin.WriteString("hello\n")
	h.must(err)
	h.eventually("it reads its stdin", func() bool { return h.log("r")["stderr"] == "hello\n" })
	attached.Close()

	h.killShim()
	then := h.lastCount("r")
	h.eventually("it counts under the next supervisor", func() bool { return h.lastCount("r") > then+3 })
	h.must(h.client.Kill(h.ctx(), "r", syscall.SIGKILL))
	if got := h.exit("r"); !got.Known || got.Signal != int(syscall.SIGKILL) {
		t.Errorf("got %+v, want a kill", got)
	}
	for _, id := range []string{"r", "c"} {
		h.must(h.client.Delete(h.ctx(), id))
		h.nothingLeft(id)
	}
}

// TestCheckpointTerminal: a container with a terminal, restored, has one again.
func TestCheckpointTerminal(t *testing.T) {
	h := newHost(t)
	if !criu.Works(t) {
		return
	}
	handler := h.handler("runc")
	const script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done"
	h.start(h.bundle(handler, "c", script, terminal))
	h.eventually("it counts", func() bool { return strings.Contains(h.log("c")["stdout"], "3") })
	to := h.checkpointDirs("cp")
	to.ID = "c"
	h.must(h.client.Checkpoint(h.ctx(), to))
	h.must(h.client.Delete(h.ctx(), "c"))
	again := h.bundle(handler, "r", script, terminal)
	again.Restore = &shim.Restore{Images: to.Images}
	h.start(again)
	h.eventually("the restored one counts", func() bool { return len(h.log("r")["stdout"]) > 20 })
	h.must(h.client.Resize(h.ctx(), "r", 80, 25))
}

// TestCheckpointKilled: whichever program is killed during a checkpoint, the container lives.
func TestCheckpointKilled(t *testing.T) {
	h := newHost(t)
	if !criu.Works(t) {
		return
	}
	handler := h.handler("runc")
	started := h.start(h.bundle(handler, "c", "head -c 64000000 /dev/zero >/dev/null; "+counter, func(s *specs.Spec) {}))
	for round := range 5 {
		to := h.checkpointDirs(fmt.Sprintf("cp%d", round))
		to.ID = "c"
		ended := make(chan error, 1)
		go func() { ended <- h.client.Checkpoint(h.ctx(), to) }()
		h.eventually("CRIU is at work", func() bool {
			_, err := os.Stat(filepath.Join(to.Work, "dump.log"))
			return err == nil
		})
		h.killShim()
		if err := <-ended; err != nil {
			t.Logf("round %d: %v", round, err)
		}
		then := h.lastCount("c")
		h.eventually("it goes on counting", func() bool { return h.lastCount("c") > then+3 })
		if !alive(started.PID) {
			t.Fatalf("round %d: process %d is gone", round, started.PID)
		}
	}
}

// TestRestoreRefused: what is no checkpoint is refused, and nothing is left.
func TestRestoreRefused(t *testing.T) {
	h := newHost(t)
	for name, stdio := range map[string]string{
		"empty": `{}`, "torn": `{"file[1`, "option": `{"file[1:2]\nexec-cmd":"in"}`, "stream": `{"file[1:2]":"record.json"}`,
	} {
		images := filepath.Join(h.state, "images-"+name)
		h.must(os.Mkdir(images, 0o700))
		h.must(os.WriteFile(filepath.Join(images, "stdio.json"), []byte(stdio), 0o600))
		req := h.bundle(h.handler("runc"), name, "true")
		req.Restore = &shim.Restore{Images: images}
		_, err := h.client.Start(h.ctx(), req)
		if err == nil {
			t.Errorf("%s: it was restored", name)
		} else if name != "empty" && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v, want an invalid argument", name, err)
		}
		h.nothingLeft(name)
	}
	for name, req := range map[string]shim.CheckpointRequest{
		"unknown":  {ID: "missing", Images: h.state, Work: h.state},
		"relative": {ID: "missing", Images: "images", Work: h.state},
	} {
		if err := h.client.Checkpoint(h.ctx(), req); err == nil {
			t.Errorf("%s: it was checkpointed", name)
		}
	}
}
