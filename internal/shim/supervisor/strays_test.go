package supervisor

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/proc"
	"github.com/berth-runtime/berth/test/privilege"
)

// TestStartedIsNoRuntime: crun is through before what it has started executes its own program, which takes a while on
// a busy machine. Until then that looks like crun. A successor ends crun, and not what is on record as started.
func TestStartedIsNoRuntime(t *testing.T) {
	privilege.Root(t)
	s := &Supervisor{cfg: Config{Dir: t.TempDir()}, log: slog.New(slog.DiscardHandler), containers: map[string]*container{}}
	like := func(dir string) proc.Stat {
		cmd := exec.CommandContext(t.Context(), "sleep", "1000")
		cmd.Path, cmd.Args = "/bin/sh", []string{"crun", "-c", "read -r line", "exec", "--pid-file", filepath.Join(s.containersDir(), dir, "pid")}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = in.Close()
			_ = cmd.Wait() // it ended with its input, or was killed
		})
		stat, err := proc.Read(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return stat
	}
	runtime := like("c/exec-late")
	started := like("c/exec-through")
	first := like("c")
	s.containers["c"] = s.newContainer(record{
		ID: "c", State: stateRunning, PID: first.PID, Started: first.Started, Handler: ociruntime.Handler{Type: ociruntime.TypeOCI},
	})
	dir := filepath.Join(s.containersDir(), "c", execPrefix+"through")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := save(filepath.Join(dir, recordFile), execRecord{ID: "through", PID: started.PID, Started: started.Started}); err != nil {
		t.Fatal(err)
	}
	if err := s.endRuntimes(t.Context(), s.containersDir()+"/", s.recorded()); err != nil {
		t.Fatal(err)
	}
	for what, tc := range map[string]struct {
		stat proc.Stat
		ends bool
	}{"the runtime": {runtime, true}, "an exec on record": {started, false}, "a container on record": {first, false}} {
		stat, err := proc.Read(tc.stat.PID)
		if ended := err != nil || stat.Dead(); ended != tc.ends {
			t.Errorf("%s has ended: %v, want %v", what, ended, tc.ends)
		}
	}
}
