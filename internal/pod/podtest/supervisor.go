package podtest

import (
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/shim"
)

// Supervisor is a supervisor under test.
type Supervisor struct {
	pod.Supervisor
	// Request returns the request for a container that runs until it is killed.
	Request func(t testing.TB, id string) shim.StartRequest
	// Exit waits for an exit that Exits delivers. The manager under test is connected by a client that Reconnect
	// replaces, as a restarted daemon does.
	Exit      func(t testing.TB, id string) shim.Exit
	Reconnect func(t testing.TB) pod.Supervisor
}

const (
	// container is the ID of the container that a test starts.
	container = "one"
	// unknown is the ID of a container that no supervisor has.
	unknown = "unknown"
)

// RunSupervisor tests what the engine relies on in the supervisor. open returns one for the length of a test.
func RunSupervisor(t *testing.T, open func(t *testing.T) Supervisor) {
	for name, test := range map[string]func(*testing.T, Supervisor){
		"unknown-container":             unknownContainer,
		"delete-is-idempotent":          deleteIsIdempotent,
		"container-is-listed":           containerIsListed,
		"kill-sends-signal":             killSendsSignal,
		"kill-after-exit":               killAfterExit,
		"exit-is-delivered-until-known": exitIsDeliveredAgain,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// start starts the container.
func (s Supervisor) start(t *testing.T) shim.Started {
	t.Helper()
	started, err := s.Start(t.Context(), s.Request(t, container))
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	if started.PID <= 0 || started.At.IsZero() {
		t.Errorf("started is %+v, want a PID and a time", started)
	}
	return started
}

// listed finds the container in the list.
func (s Supervisor) listed(t *testing.T) (shim.Container, bool) {
	t.Helper()
	list, err := s.List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	for _, c := range list {
		if c.ID == container {
			return c, true
		}
	}
	return shim.Container{}, false
}

// A container that is not known is an ErrNotFound, except for Delete, which has nothing to do.
func unknownContainer(t *testing.T, s Supervisor) {
	for name, err := range map[string]error{
		"Kill": s.Kill(t.Context(), unknown, syscall.SIGTERM), "KillAll": s.KillAll(t.Context(), unknown),
		"Update":    s.Update(t.Context(), unknown, &specs.LinuxResources{}),
		"ReopenLog": s.ReopenLog(t.Context(), unknown),
	} {
		if !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v, want ErrNotFound", name, err)
		}
	}
	must(t, "Delete", s.Delete(t.Context(), unknown))
}

// To delete again is no error. A container that was deleted is not listed.
func deleteIsIdempotent(t *testing.T, s Supervisor) {
	s.start(t)
	must(t, "KillAll", s.KillAll(t.Context(), container))
	s.Exit(t, container)
	for range 2 {
		must(t, "Delete", s.Delete(t.Context(), container))
		if c, found := s.listed(t); found {
			t.Errorf("after Delete the list has %+v", c)
		}
	}
}

// A container is listed from its start to its deletion, with its process and then with its exit.
func containerIsListed(t *testing.T, s Supervisor) {
	started := s.start(t)
	if c, found := s.listed(t); !found || !c.Running || c.PID != started.PID || c.Exit != nil {
		t.Errorf("a container that runs is listed as %+v, %v, want process %d", c, found, started.PID)
	}
	must(t, "KillAll", s.KillAll(t.Context(), container))
	exit := s.Exit(t, container)
	if c, found := s.listed(t); !found || c.Running || c.Exit == nil || c.Exit.Code != exit.Code {
		t.Errorf("a container that has exited is listed as %+v, %v, want exit code %d", c, found, exit.Code)
	}
	must(t, "Delete", s.Delete(t.Context(), container))
}

// The exit code of a container that a signal ends is 128 and the signal.
func killSendsSignal(t *testing.T, s Supervisor) {
	s.start(t)
	must(t, "Kill", s.Kill(t.Context(), container, syscall.SIGKILL))
	if exit := s.Exit(t, container); !exit.Known || exit.Code != 128+int(syscall.SIGKILL) || exit.At.IsZero() {
		t.Errorf("exit is %+v, want code %d and a time", exit, 128+int(syscall.SIGKILL))
	}
	must(t, "Delete", s.Delete(t.Context(), container))
}

// A signal to a container that has exited is an ErrNotFound, and does not change its exit; KillAll has nothing to do.
func killAfterExit(t *testing.T, s Supervisor) {
	s.start(t)
	must(t, "KillAll", s.KillAll(t.Context(), container))
	s.Exit(t, container)
	if err := s.Kill(t.Context(), container, syscall.SIGTERM); !errdefs.IsNotFound(err) {
		t.Errorf("Kill of a container that has exited: %v, want ErrNotFound", err)
	}
	must(t, "KillAll of a container that has exited", s.KillAll(t.Context(), container))
	if c, _ := s.listed(t); c.Exit == nil || c.Exit.Code != 128+int(syscall.SIGKILL) {
		t.Errorf("exit is %+v, want that of the first signal", c.Exit)
	}
	must(t, "Delete", s.Delete(t.Context(), container))
}

// The next daemon gets an exit until the container is deleted: the last one may have been killed before it was
// recorded.
func exitIsDeliveredAgain(t *testing.T, s Supervisor) {
	s.start(t)
	must(t, "KillAll", s.KillAll(t.Context(), container))
	first := s.Exit(t, container)
	s.Supervisor = s.Reconnect(t)
	if again := s.Exit(t, container); again.Code != first.Code || !again.At.Equal(first.At) {
		t.Errorf("exit is %+v for the next client, was %+v", again, first)
	}
	must(t, "Delete", s.Delete(t.Context(), container))
}
