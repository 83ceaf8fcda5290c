package integration

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/imagefactory"
)

// The real-time signals as C libraries number them.
const rtMin, rtMax = 34, 64

// signalNumber is the number of a signal that the CRI names.
func signalNumber(t *testing.T, s runtimeapi.Signal) syscall.Signal {
	t.Helper()
	name := strings.TrimPrefix(s.String(), "SIGNAL_")
	for _, base := range []struct {
		prefix       string
		number, sign int
	}{{"SIGRTMINPLUS", rtMin, 1}, {"SIGRTMAXMINUS", rtMax, -1}} {
		if offset, ok := strings.CutPrefix(name, base.prefix); ok {
			n, err := strconv.Atoi(offset)
			if err != nil {
				t.Fatalf("signal %s: %v", name, err)
			}
			return syscall.Signal(base.number + base.sign*n)
		}
	}
	second := map[string]syscall.Signal{
		"SIGRTMIN": rtMin, "SIGRTMAX": rtMax, "SIGCLD": unix.SIGCHLD, "SIGIOT": unix.SIGABRT, "SIGPOLL": unix.SIGIO,
		"RUNTIME_DEFAULT": unix.SIGTERM,
	}
	if n, ok := second[name]; ok {
		return n
	}
	n := unix.SignalNum(name)
	if n == 0 {
		t.Fatalf("the kernel has no signal %s", name)
	}
	return n
}

// TestStopSignals: each of the signals that the CRI names reaches the container when it is stopped, and its status says which
// one that is. SIGKILL and SIGSTOP cannot be caught; after them, what is left is killed.
func TestStopSignals(t *testing.T) {
	n := harness.Start(t, harness.Options{Handler: "crun"})
	p := n.RunPod()
	n.Pull()
	// A shell that waits for input has no child whose end could be taken for a signal.
	const catchAll = `for s in $(seq 1 64); do trap "exit $s" $s 2>/dev/null; done; echo ready; while true; do read line; done`
	values := slices.Sorted(maps.Keys(runtimeapi.Signal_name))
	if len(values) != 66 {
		t.Errorf("the CRI names %d signals, want 65 and the default", len(values)-1)
	}
	for _, value := range values {
		signal := runtimeapi.Signal(value)
		number := signalNumber(t, signal)
		c := p.Start([]string{"sh", "-c", catchAll}, func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StopSignal = true, signal })
		n.Eventually("the traps are set", func() error { return logHas(c, "stdout F ready") })
		equal(t, "signal in the status for "+signal.String(), signalNumber(t, c.Status().GetStopSignal()), number)
		grace, code := int64(60), int32(number)
		if number == unix.SIGKILL || number == unix.SIGSTOP {
			grace, code = 1, 128+int32(unix.SIGKILL)
		}
		c.Stop(grace)
		equal(t, "exit code after "+signal.String(), c.Status().GetExitCode(), code)
		c.Remove()
	}
}

// TestImageStopSignal: the signal of the image is the one of a container that asks for none, and yields to one that does.
func TestImageStopSignal(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	image, err := imagefactory.BusyboxWith(imagefactory.Spec{Config: ocispec.ImageConfig{StopSignal: "SIGRTMIN+3"}})
	if err != nil {
		t.Fatal(err)
	}
	ref := imagefactory.MustPush(t, n.Registry.Host, "stopped-otherwise:1", image)
	if _, err := pull(n, ref); err != nil {
		t.Fatal(err)
	}
	p := n.RunPod()
	for want, asked := range map[int32]runtimeapi.Signal{rtMin + 3: runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, int32(unix.SIGUSR2): runtimeapi.Signal_SIGNAL_SIGUSR2} {
		script := fmt.Sprintf("trap 'exit %d' %d; echo ready; while true; do read line; done", want, want)
		c := p.Start([]string{"sh", "-c", script}, func(c *runtimeapi.ContainerConfig) {
			c.Stdin, c.StopSignal, c.Image.Image = true, asked, ref
		})
		n.Eventually("the trap is set", func() error { return logHas(c, "stdout F ready") })
		equal(t, "signal in the status", int32(signalNumber(t, c.Status().GetStopSignal())), want)
		c.Stop(60)
		equal(t, "exit code", c.Status().GetExitCode(), want)
	}
}
