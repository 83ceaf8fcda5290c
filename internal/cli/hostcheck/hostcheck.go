// Package hostcheck finds out what this host supports, by trying it where that
// leaves no trace, and says how to get what is missing.
package hostcheck

import (
	"context"
	"os"
	"time"

	"github.com/berth-runtime/berth/internal/config"
)

// timeout bounds the whole check.
const timeout = 2 * time.Minute

// Level says how much a fact matters.
type Level string

// The levels, from good to bad.
const (
	// OK is a thing that is there and works.
	OK Level = "ok"
	// Info is neither good nor bad.
	Info Level = "info"
	// Warn is a thing whose absence takes something away.
	Warn Level = "warn"
	// Fail is a thing without which no pod runs.
	Fail Level = "fail"
)

// Fact is one thing about this host. The names in JSON are stable.
type Fact struct {
	// Area is what it belongs to: kernel, rights, cgroup, storage, network, runtime…
	Area string `json:"area"`
	// Name is what was looked at.
	Name string `json:"name"`
	// Level says how much it matters.
	Level Level `json:"level"`
	// Found is what there is, in words.
	Found string `json:"found"`
	// Remedy is what to do about it; empty if there is nothing to do.
	Remedy string `json:"remedy"`
}

// facts collects what is found.
type facts []Fact

func (f *facts) ok(area, name, found string)   { *f = append(*f, Fact{area, name, OK, found, ""}) }
func (f *facts) info(area, name, found string) { *f = append(*f, Fact{area, name, Info, found, ""}) }
func (f *facts) warn(area, name, found, remedy string) {
	*f = append(*f, Fact{area, name, Warn, found, remedy})
}

func (f *facts) fail(area, name, found, remedy string) {
	*f = append(*f, Fact{area, name, Fail, found, remedy})
}

// needsRoot notes a thing that only root can try.
func (f *facts) needsRoot(area, name string) {
	f.warn(area, name, "not tried without root", "run: sudo berth check")
}

// Run looks at everything that a daemon with this configuration needs.
func Run(ctx context.Context, c *config.Config) []Fact {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var f facts
	root := os.Geteuid() == 0
	f.kernel(c, root)
	f.rights(root)
	f.cgroups(c)
	f.security()
	f.storage(c)
	f.network(c, root)
	f.runtimes(ctx, c, root)
	f.plugins(c)
	return f
}
