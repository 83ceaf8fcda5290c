package supervisor

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/shim/wire"
)

func stagedFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestStagedDescriptorsExpire closes them, tells the owner, and makes room in the pod.
func TestStagedDescriptorsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStaging()
		first, taken := stagedFile(t), stagedFile(t)
		expired := 0
		if err := errors.Join(
			s.put("a", "pod", wire.Files{wire.Stdin: first}, func() { expired++ }),
			s.put("b", "pod", wire.Files{wire.Stdin: taken}, func() { expired += 10 }),
		); err != nil {
			t.Fatal(err)
		}
		if got := s.take("b"); got[wire.Stdin] != taken {
			t.Errorf("take: got %v", got)
		}
		time.Sleep(stagedLife + time.Second)
		synctest.Wait()
		if err := first.Close(); !errors.Is(err, os.ErrClosed) || expired != 1 {
			t.Errorf("an expired descriptor: close: %v, %d reported", err, expired)
		}
		if err := taken.Close(); err != nil {
			t.Errorf("a descriptor that was taken: close: %v", err)
		}
		if got := s.take("a"); got != nil || len(s.byPod) != 0 {
			t.Errorf("after expiry: got %v, counts %v", got, s.byPod)
		}
	})
}

// TestStagedDescriptorsAreLimited for each pod and for all of them.
func TestStagedDescriptorsAreLimited(t *testing.T) {
	s := newStaging()
	defer s.clear()
	refused := func(name, pod string) bool {
		f := stagedFile(t)
		err := s.put(name, pod, wire.Files{wire.Stdin: f}, nil)
		if err != nil && (!errdefs.IsResourceExhausted(err) || !errors.Is(f.Close(), os.ErrClosed)) {
			t.Errorf("put: %v; the file must be closed", err)
		}
		return err != nil
	}
	for pod := range maxStaged / maxStagedOfPod {
		if refused("first"+fmt.Sprint(pod), fmt.Sprint(pod)) {
			t.Fatalf("pod %d is refused", pod)
		}
	}
	for pod := range maxStaged / maxStagedOfPod {
		for i := range maxStagedOfPod - 1 {
			if refused(fmt.Sprint(pod, "/", i), fmt.Sprint(pod)) {
				t.Fatalf("call %d of pod %d is refused", i, pod)
			}
		}
		if !refused(fmt.Sprint(pod, "/more"), fmt.Sprint(pod)) {
			t.Fatalf("pod %d has no limit", pod)
		}
	}
	if !refused("more", "another") {
		t.Error("all pods together have no limit")
	}
	s.take("first0").Close()
	if refused("more", "another") {
		t.Error("there is room, and a call is refused")
	}
}

// TestAbandonedCallStagesNothing: a call that comes later than the word that it was abandoned takes no room in its pod.
func TestAbandonedCallStagesNothing(t *testing.T) {
	s := newStaging()
	for i := range 3 * maxAbandoned {
		name := fmt.Sprint("attach/", i)
		s.abandon(name)
		late := stagedFile(t)
		if err := s.put(name, "pod", wire.Files{wire.Stdout: late}, nil); !errdefs.IsUnavailable(err) {
			t.Fatalf("put %d: got %v, want ErrUnavailable", i, err)
		}
		if err := late.Close(); !errors.Is(err, os.ErrClosed) {
			t.Fatalf("put %d: the descriptor was left open", i)
		}
	}
	if len(s.abandoned) > maxAbandoned || len(s.byPod) != 0 {
		t.Errorf("%d abandoned calls are remembered, pods have %v staged", len(s.abandoned), s.byPod)
	}
}
