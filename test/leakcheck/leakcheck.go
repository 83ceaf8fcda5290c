// Package leakcheck finds what a test leaves behind.
//
// [Check] counts what there is before a test and counts again when the test and all its clean-ups are over. Whatever
// is new then is a leak and fails the test: processes, mounts, pinned namespaces, links, nftables tables and rules,
// cgroup directories, files, open descriptors and goroutines. Kernel and runtime take a moment to let go of things
// (a network namespace dies in a work queue, a goroutine needs a turn to return), so the second count is repeated
// until it agrees or its deadline passes.
//
// # Whose leak is it?
//
// Processes, descriptors and goroutines are always attributed exactly. For processes the test binary makes itself a
// child subreaper: a daemon which left its session, or a container whose supervisor was killed, then becomes a child
// of the test instead of one of PID 1, and it cannot get away.
//
// Mounts, links, nftables rules and temporary files are attributed exactly where package isolation has given the test
// binary namespaces of its own: no other program changes what it counts. What vanished is reported too.
//
// Cgroups belong to the machine, and so does everything where the binary is not isolated. Of these only what carries the
// mark of the test counts: one of the marks given to [Check], or a directory made by [Dir].
package leakcheck

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-runtime/berth/test/isolation"
)

const (
	// settleTime is how long things may take to go away after a test that passed.
	settleTime = 10 * time.Second
	// settleTimeFailed is the same for a test that has failed already: its leaks are a consequence.
	settleTimeFailed = time.Second
	// settleStep is the pause between two counts.
	settleStep = 20 * time.Millisecond
)

// counts maps the identity of a resource to its description.
type counts map[string]string

// kind is one sort of thing that can leak.
type kind struct {
	name string
	// shared things belong to the machine: they are attributed by mark.
	shared bool
	// durable things must also still be there at the end, unless they are shared.
	durable bool
	count   func() (counts, error)
}

// check is one [Check] at work.
type check struct {
	t      testing.TB
	kinds  []kind
	before map[string]counts
}

// running holds the checks in progress, and the marks of their tests.
var running struct {
	sync.Mutex
	tests []string
	marks []string
}

// Check compares what exists now with what exists when t and its clean-ups are over, and fails t with the difference.
// Call it first in a test: clean-ups run last in, first out, so only what is registered after it is awaited by it.
//
// marks are parts of names that only this test uses: an absolute directory, the suffix of its links, the name of its
// cgroup. Files are compared beneath the marks that are directories when Check is called.
//
// Descriptors and goroutines belong to the whole test binary, so a test which uses Check must not be parallel to
// another one; Check refuses that. Subtests may have a Check of their own.
func Check(t testing.TB, marks ...string) {
	t.Helper()
	if isolation.Wanted() && !isolation.Active() {
		t.Fatalf("begin the leak check: the TestMain of this package must call isolation.Main")
	}
	if err := becomeSubreaper(); err != nil {
		t.Fatalf("begin the leak check: %v", err)
	}
	begin(t, marks)
	t.Cleanup(func() { end(t, marks) })
	c := &check{t: t, kinds: kinds(isolation.Active(), directories(marks)), before: map[string]counts{}}
	for _, k := range c.kinds {
		found, err := k.count()
		if err != nil {
			t.Fatalf("count %s before the test: %v", k.name, err)
		}
		c.before[k.name] = found
	}
	t.Cleanup(c.settle)
}

// Mark gives the leak check of the running tests further marks, such as names that are known only later. Marks are unique, so
// they are never removed.
func Mark(marks ...string) {
	running.Lock()
	defer running.Unlock()
	running.marks = append(running.marks, marks...)
}

func begin(t testing.TB, marks []string) {
	t.Helper()
	running.Lock()
	defer running.Unlock()
	for _, other := range running.tests {
		if !strings.HasPrefix(t.Name(), other+"/") {
			t.Fatalf("begin the leak check of %s: %s is still running, and the resources of two tests of one process cannot be attributed; "+
				"remove t.Parallel or the second call of leakcheck.Check", t.Name(), other)
		}
	}
	running.tests = append(running.tests, t.Name())
	running.marks = append(running.marks, marks...)
}

func end(t testing.TB, marks []string) {
	running.Lock()
	defer running.Unlock()
	running.tests = remove(running.tests, t.Name())
	for _, m := range marks {
		running.marks = remove(running.marks, m)
	}
}

// remove takes the last s out of list.
func remove(list []string, s string) []string {
	for i, other := range slices.Backward(list) {
		if other == s {
			return slices.Delete(list, i, i+1)
		}
	}
	return list
}

func directories(marks []string) []string {
	var dirs []string
	for _, m := range marks {
		if info, err := os.Stat(m); err == nil && info.IsDir() && strings.HasPrefix(m, "/") {
			dirs = append(dirs, m)
		}
	}
	return dirs
}

// settle counts until nothing is left over, and reports what does not go away.
func (c *check) settle() {
	c.t.Helper()
	wait := settleTime
	if c.t.Failed() {
		wait = settleTimeFailed
	}
	start := time.Now()
	for {
		// Idle connections of the default client are a cache, not a leak.
		http.DefaultClient.CloseIdleConnections()
		waited := time.Since(start)
		reapOrphans(c.before[kindProcesses], waited)
		report, err := c.compare()
		if err != nil {
			c.t.Errorf("check for leaks after the test: %v", err)
			return
		}
		if report == "" {
			return
		}
		if waited > wait {
			c.t.Errorf("the test leaves this behind, %v after its end:\n%s", wait, report)
			killLeaked(c.t, c.before[kindProcesses])
			return
		}
		time.Sleep(settleStep)
	}
}

// compare returns the difference to the first count, or "" if there is none.
func (c *check) compare() (string, error) {
	var out strings.Builder
	for _, k := range c.kinds {
		now, err := k.count()
		if err != nil {
			return "", fmt.Errorf("count %s: %w", k.name, err)
		}
		before := c.before[k.name]
		for _, id := range sortedKeys(now) {
			if _, known := before[id]; !known && c.ours(k, id, now[id]) {
				fmt.Fprintf(&out, "  new in %s: %s\n", k.name, now[id])
			}
		}
		if !k.durable || k.shared {
			continue
		}
		for _, id := range sortedKeys(before) {
			if _, there := now[id]; !there {
				fmt.Fprintf(&out, "  gone from %s: %s\n", k.name, before[id])
			}
		}
	}
	return out.String(), nil
}

// ours returns whether a new resource is attributed to the test.
func (c *check) ours(k kind, id, words string) bool {
	if !k.shared {
		return true
	}
	running.Lock()
	defer running.Unlock()
	for _, m := range running.marks {
		if strings.Contains(id, m) || strings.Contains(words, m) {
			return true
		}
	}
	return false
}

func sortedKeys(m counts) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
