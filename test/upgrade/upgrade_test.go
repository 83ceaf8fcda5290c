package upgrade

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/ttrpc"

	"github.com/berth-runtime/berth/internal/shim/wire"
	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/programs"
)

// TestMain runs the tests in namespaces of their own.
func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// TestUpgrade: pods of the last release run on under the daemon of this version, first with the old supervisor, then with
// the new one in the same process.
func TestUpgrade(t *testing.T) {
	old, current := versions(t)
	change(t, old, current)
}

// TestDowngrade: the same in the other direction.
func TestDowngrade(t *testing.T) {
	old, current := versions(t)
	change(t, current, old)
}

// versions returns the directories of the programs of the last release and of this version.
func versions(t *testing.T) (old, current string) {
	t.Helper()
	privilege.Root(t)
	old, err := lastRelease(t.Context(), "../..")
	if errors.Is(err, errNoHistory) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if current, err = programs.Dir(); err != nil {
		t.Fatal(err)
	}
	return old, current
}

// change runs pods with the programs in from, and goes over to those in to: first the daemon, then the supervisor.
func change(t *testing.T, from, to string) {
	for _, handler := range []string{"runc", "crun"} {
		t.Run(handler, func(t *testing.T) {
			n := harness.Start(t, harness.Options{Handler: handler, Bin: from})
			w := newWorkload(t, n)
			w.check("before the change")
			supervisor := shimPID(t, n)
			wantProgram(t, n.PID(), from, "berthd")
			wantProgram(t, supervisor, from, "berth-shim")

			if err := n.Change(n.Context(), to); err != nil {
				t.Fatal(err)
			}
			wantProgram(t, n.PID(), to, "berthd")
			wantProgram(t, supervisor, from, "berth-shim")
			w.check("with the other daemon")

			changeSupervisor(t, n, filepath.Join(to, "berth-shim"))
			if now := shimPID(t, n); now != supervisor {
				t.Errorf("supervisor is process %d, was %d", now, supervisor)
			}
			n.Eventually("the supervisor executes the other program", func() error { return isProgram(supervisor, to, "berth-shim") })
			w.check("with the other supervisor")
			w.end()
		})
	}
}

// changeSupervisor makes the supervisor execute another program.
func changeSupervisor(t *testing.T, n *harness.Node, program string) {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(n.Config.State, "shim", wire.Socket))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	// The connection ends with the program that would answer; only a refusal is answered.
	_, err = wire.NewShimClient(client).Upgrade(n.Context(), &wire.UpgradeRequest{Binary: program})
	if err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		t.Fatalf("change the supervisor: %v", wire.Decode(err))
	}
}

func shimPID(t *testing.T, n *harness.Node) int {
	t.Helper()
	pid, err := n.ShimPID()
	if err != nil || pid == 0 {
		t.Fatalf("supervisor is process %d (%v)", pid, err)
	}
	return pid
}

func wantProgram(t *testing.T, pid int, dir, name string) {
	t.Helper()
	if err := isProgram(pid, dir, name); err != nil {
		t.Error(err)
	}
}

// isProgram is an error unless a process runs a program of a directory.
func isProgram(pid int, dir, name string) error {
	got, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if want := filepath.Join(dir, name); err != nil || got != want {
		return fmt.Errorf("process %d runs %s (%w), want %s", pid, got, err, want)
	}
	return nil
}
