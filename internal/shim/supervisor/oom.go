package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
)

// oomLedger tells how many processes of a container the kernel has killed for lack
// of memory, also when the container's cgroup is gone: systemd removes a scope the
// moment its last process ends, and may be faster than the supervisor hears of it.
// On cgroup v2 the kernel counts a kill in every cgroup above as well, so what the
// parent has counted and no other child has must have been in the one that is gone.
type oomLedger struct {
	kills func(path string) (uint64, error)

	mu      sync.Mutex
	parents map[string]*oomParent
}

// oomParent is a cgroup in which containers run.
type oomParent struct {
	// past is how many kills are put down to children that have ended.
	past int64
	// open has the children that have not. The value is what the parent had counted
	// that had no owner when the child came.
	open map[string]int64
}

func newOOMLedger(kills func(string) (uint64, error)) *oomLedger {
	return &oomLedger{kills: kills, parents: map[string]*oomParent{}}
}

// begin is called before a container's first process is in the cgroup, or when a
// running one is taken over.
func (l *oomLedger) begin(cgroup string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := filepath.Dir(cgroup)
	p := l.parents[name]
	if p == nil {
		p = &oomParent{open: map[string]int64{}}
		l.parents[name] = p
	}
	p.open[cgroup] = 0
	p.open[cgroup] = l.nobodys(name, p)
}

// end returns the kills in a cgroup whose container has ended. Without a begin it
// looks at the cgroup alone.
func (l *oomLedger) end(cgroup string) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := filepath.Dir(cgroup)
	p := l.parents[name]
	var base int64
	begun := false
	if p != nil {
		base, begun = p.open[cgroup]
		delete(p.open, cgroup)
	}
	found, err := l.kills(cgroup)
	own := int64(found)
	if errdefs.IsNotFound(err) || errors.Is(err, os.ErrNotExist) {
		err = nil
		if begun {
			own = max(0, l.nobodys(name, p)-base)
		}
	}
	if p != nil {
		p.past += own
		if len(p.open) == 0 {
			delete(l.parents, name)
		}
	}
	return own, err
}

// nobodys is how many kills a parent has counted that were in none of its known
// children. A cgroup that cannot be read has none to its name.
func (l *oomLedger) nobodys(name string, p *oomParent) int64 {
	sum := l.count(name) - p.past
	for child := range p.open {
		sum -= l.count(child)
	}
	return sum
}

func (l *oomLedger) count(cgroup string) int64 {
	n, err := l.kills(cgroup)
	if err != nil {
		return 0
	}
	return int64(n)
}

// beginOOM begins to count the container's OOM kills.
func (c *container) beginOOM(rec record) {
	if rec.Cgroup != "" && !rec.Infra {
		c.s.ooms.begin(rec.Cgroup)
	}
}
