// Package isolation runs a test binary in mount and network namespaces of its own.
//
// What a test binary has there for itself: the mount table, which nothing is propagated into; /tmp; the entries of /run
// and /var/lib that Berth, OCI runtimes and CNI plugins make; links, routes, nftables tables and ports. So the leak check
// counts all of it exactly, other programs cannot change what it counts, and the binaries of several packages can run at
// the same time. Programs that a test starts are in the same namespaces.
//
// Still shared with the machine are cgroups, processes, the clock and everything else on its disks.
package isolation

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-runtime/berth/test/privilege"
)

const (
	// Variable is the environment variable that leaves a test binary in the namespaces of the machine, with the value
	// Machine. It is for virtual machines that exist for their tests, where systemd starts some of the programs.
	Variable = "BERTH_TEST_NAMESPACES"
	// Machine is the value of Variable.
	Machine = "machine"
	// stateVariable marks an isolated test binary: its PID, the mount namespace, and the directory that is its
	// /tmp.
	stateVariable = "BERTH_TEST_ISOLATED"
)

// off is set by Off.
var off bool

// Off leaves this test binary in the namespaces of the machine, for a package whose tests install programs or fetch them
// from the network. Call it in TestMain.
func Off() { off = true }

// Main runs the tests of a package in namespaces of their own if they may make namespaces. Call it in TestMain with
// os.Exit, after the roles that the test binary plays for its own tests.
func Main(m *testing.M) int {
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return Leave(m.Run())
}

// Enter is for a TestMain that prepares something: it isolates this process if tests may make namespaces, by executing
// the test binary again. So what is before it in TestMain runs twice, outside and inside. PID, descriptors, flags, signals
// and exit code stay as the go command knows them. After an error the process must end.
func Enter() error {
	if Active() || !Wanted() {
		return nil
	}
	if err := enter(); err != nil {
		return fmt.Errorf("isolate the tests: %w", err)
	}
	return nil
}

// Leave removes what Enter made, and returns the exit code of the tests. It is a failure if they leave a file in /tmp,
// also if they have no leak check.
func Leave(code int) int {
	s, err := readState()
	if err != nil || s.pid != os.Getpid() { // not isolated, or a child of the isolated process
		return code
	}
	if err := s.leave(code == 0); err != nil {
		fmt.Fprintln(os.Stderr, "end the isolation of the tests:", err)
		return max(code, 1)
	}
	return code
}

// Wanted returns whether tests that may make namespaces are to be isolated.
func Wanted() bool {
	return privilege.Available() && !off && os.Getenv(Variable) != Machine
}

// Active returns whether this process is in the namespaces that Main made.
func Active() bool {
	s, err := readState()
	if err != nil {
		return false
	}
	current, err := mountNamespace()
	return err == nil && s.namespace == current
}

// state is the value of stateVariable.
type state struct {
	pid       int
	namespace string
	tmp       string
}

func (s state) String() string { return fmt.Sprintf("%d %s %s", s.pid, s.namespace, s.tmp) }

func readState() (state, error) {
	value := os.Getenv(stateVariable)
	parts := strings.SplitN(value, " ", 3)
	if len(parts) != 3 {
		return state{}, fmt.Errorf("%s=%q: want a PID, a mount namespace and a directory", stateVariable, value)
	}
	pid, err := strconv.Atoi(parts[0])
	if err != nil {
		return state{}, fmt.Errorf("read the PID in %s: %w", stateVariable, err)
	}
	return state{pid: pid, namespace: parts[1], tmp: parts[2]}, nil
}

// mountNamespace names the mount namespace of the calling thread.
func mountNamespace() (string, error) {
	name, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil {
		return "", fmt.Errorf("read the mount namespace: %w", err)
	}
	return name, nil
}

// Outside returns the environment of this process for a test binary that is to isolate itself again.
func Outside() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, stateVariable+"=") {
			env = append(env, e)
		}
	}
	return env
}
