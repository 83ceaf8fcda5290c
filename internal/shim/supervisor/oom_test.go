package supervisor

import (
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
)

// kernel is cgroups as v2 counts OOM kills in them.
type kernel map[string]uint64

func (k kernel) kills(path string) (uint64, error) {
	n, ok := k[path]
	if !ok {
		return 0, fmt.Errorf("%s: %w", path, errdefs.ErrNotFound)
	}
	return n, nil
}

// kill counts a kill in a container's cgroup and in the parent.
func (k kernel) kill(path string) {
	k[path]++
	k["/pod"]++
}

// TestOOMLedger: each kill is put down to the container in which it was, whatever systemd has removed by the time one looks.
func TestOOMLedger(t *testing.T) {
	const a, b, c = "/pod/a", "/pod/b", "/pod/c"
	k := kernel{"/pod": 5} // of containers that were there before this supervisor
	l := newOOMLedger(k.kills)
	want := func(cgroup string, kills int64) {
		t.Helper()
		if got, err := l.end(cgroup); err != nil || got != kills {
			t.Errorf("%d kills in %s, %v, want %d", got, cgroup, err, kills)
		}
	}
	for _, cgroup := range []string{a, b} {
		l.begin(cgroup)
		k[cgroup] = 0
	}
	k.kill(b) // a process which is not the first: the container goes on
	delete(k, a)
	want(a, 0)
	l.begin(a)
	k[a] = 0
	k.kill(a)
	delete(k, a)
	want(a, 1)
	l.begin(c)
	k[c] = 0
	delete(k, b)
	want(b, 1)
	want(b, 0) // reported twice
	k.kill(c)
	want(c, 1) // its cgroup is still there
	if len(l.parents) != 0 {
		t.Errorf("there are records of %v although no container is left", l.parents)
	}
	l.begin(a) // a successor takes over what has had a kill already
	want(a, 0)
}
