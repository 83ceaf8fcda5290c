package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/test/leakcheck"
)

// rig is a manager with what a test needs around it.
type rig struct {
	*Manager
	t       testing.TB
	options Options
	dir     string
}

// newRig opens a manager with a root and a configuration directory of its own. At the end of the test nothing of it may be
// left.
func newRig(t testing.TB, change func(*Options)) *rig {
	t.Helper()
	leakcheck.Check(t)
	before := hostState(t)
	t.Cleanup(func() {
		if threads := strays(t); len(threads) > 0 {
			t.Errorf("threads of process %d in the wrong namespace: %v, want %s", os.Getpid(), threads, hostNetNS)
		}
		if after := hostState(t); after != before {
			t.Errorf("left on the host:\n%s\nbefore:\n%s", after, before)
		}
	})
	return openRig(t, change)
}

// openRig is for a second manager in one test.
func openRig(t testing.TB, change func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, dir: leakcheck.Dir(t)}
	r.options = Options{
		ConfDir: filepath.Join(r.dir, "net.d"), BinDirs: []string{cniBin}, Root: filepath.Join(r.dir, "network"),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if change != nil {
		change(&r.options)
	}
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *rig) open() {
	r.t.Helper()
	m, err := New(r.t.Context(), r.options)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Manager = m
}

func (r *rig) close() {
	r.t.Helper()
	if err := r.Close(); err != nil {
		r.t.Errorf("Close: %v", err)
	}
}

// restart does what a daemon that is killed and started again does: nothing is closed in order.
func (r *rig) restart() {
	r.t.Helper()
	r.cancel()
	r.work.Wait()
	r.open()
}

// pod makes a pod with namespaces, not connected yet.
func (r *rig) pod(name string, ports ...PortMapping) Pod {
	r.t.Helper()
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		r.t.Fatal(err)
	}
	pod := Pod{ID: hex.EncodeToString(raw), Name: name, Namespace: "test", UID: "uid-" + name, PortMappings: ports}
	dir := filepath.Join(r.dir, "ns-"+name)
	paths, err := namespace.Create(r.t.Context(), namespace.Request{Dir: dir, Net: true})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := namespace.Remove(context.Background(), dir); err != nil {
			r.t.Error(err)
		}
	})
	pod.NetNS = paths.Net
	return pod
}

// connected is a pod on the network.
type connected struct {
	Pod
	Plan   Plan
	Result Result
}

// connect makes and attaches a pod; the test's end detaches it.
func (r *rig) connect(name string, ports ...PortMapping) connected {
	r.t.Helper()
	pod := r.pod(name, ports...)
	plan, err := r.Plan(pod)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := r.Detach(context.Background(), pod, plan); err != nil {
			r.t.Errorf("Detach: %v", err)
		}
	})
	result, err := r.Attach(r.t.Context(), pod, plan)
	if err != nil {
		r.t.Fatal(err)
	}
	return connected{pod, plan, result}
}

func (r *rig) detach(c connected) {
	r.t.Helper()
	if err := r.Detach(r.t.Context(), c.Pod, c.Plan); err != nil {
		r.t.Fatal(err)
	}
}

// settle waits until the devices of pods that were detached are gone.
func (r *rig) settle() {
	r.t.Helper()
	if _, err := r.left(r.t.Context(), ""); err != nil {
		r.t.Fatal(err)
	}
}
