package pod

import (
	"sync"
	"testing"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/shim"
)

// NewFakeNetwork returns the network that tests of the engine use, for the contract test outside of this package.
func NewFakeNetwork() Network { return fakeNetwork{newBooks("network")} }

// NewFakeImages returns the images that tests of the engine use.
func NewFakeImages() Images {
	return fakeImages{newBooks("snapshot"), newBooks("volume"), &sync.Map{}}
}

// FakeSupervisor is the supervisor that tests of the engine use.
type FakeSupervisor struct{ *fakeShim }

// NewFakeSupervisor returns one with a client.
func NewFakeSupervisor(t testing.TB) FakeSupervisor {
	t.Helper()
	cgroups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	f := FakeSupervisor{newFakeShim(cgroups)}
	f.Reconnect()
	return f
}

// Reconnect replaces the client.
func (f FakeSupervisor) Reconnect() { f.connect() }

// Exit waits for an exit.
func (f FakeSupervisor) Exit(id string) shim.Exit {
	for exit := range f.Exits() {
		if exit.ID == id {
			return exit
		}
	}
	return shim.Exit{}
}

// RemoveCgroup removes what Start has made.
func (f FakeSupervisor) RemoveCgroup(path string) error { return f.cgroups.Remove(path) }
