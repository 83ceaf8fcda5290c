package shim

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/notify"
	"github.com/berth-runtime/berth/internal/shim/wire"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/servicemanager"
)

// testShelf is a shelf whose service manager is the test.
func testShelf(t *testing.T) (*shelf, *servicemanager.Socket) {
	t.Helper()
	manager := servicemanager.Listen(t, filepath.Join(leakcheck.Dir(t), "notify"))
	t.Setenv("NOTIFY_SOCKET", manager.Path)
	t.Setenv("FDSTORE", "1000")
	m, err := notify.Find()
	if err != nil {
		t.Fatal(err)
	}
	return newShelf(m.Store(), slog.New(slog.DiscardHandler)), manager
}

// hears returns what the manager is told next: + or - and the name.
func hears(t *testing.T, manager *servicemanager.Socket) string {
	t.Helper()
	text, file := manager.Hear(t)
	what, name, _ := strings.Cut(text, "FDNAME=")
	if strings.HasPrefix(what, "FDSTOREREMOVE=1") {
		return "-" + name
	}
	if file == nil {
		t.Fatalf("%q comes without a descriptor", text)
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	return "+" + name
}

func testFiles(t *testing.T, kinds ...string) wire.Files {
	t.Helper()
	files := wire.Files{}
	for _, kind := range kinds {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		files[kind] = f
	}
	t.Cleanup(files.Close)
	return files
}

// TestShelf: the manager of services is told what is new and what is gone, each once; nobody waits longer than for that.
func TestShelf(t *testing.T) {
	leakcheck.Check(t)
	s, manager := testShelf(t)
	ended := make(chan struct{})
	t.Cleanup(func() {
		<-ended
		s.close()
	})
	go func() {
		defer close(ended)
		s.run(t.Context())
	}()
	files := testFiles(t, wire.Pidfd, wire.Stdin)
	s.keep("a", files)
	s.await(t.Context(), "a")
	s.keep("a", files)
	got := []string{hears(t, manager), hears(t, manager)}
	slices.Sort(got)
	want := []string{"+" + shelfName("a", wire.Stdin), "+" + shelfName("a", wire.Pidfd)}
	if !slices.Equal(got, want) {
		t.Errorf("the manager hears %q, want %q", got, want)
	}
	s.keep("a", wire.Files{wire.Pidfd: files[wire.Pidfd]})
	if got, want := hears(t, manager), "-"+shelfName("a", wire.Stdin); got != want {
		t.Errorf("the manager hears %q, want %q", got, want)
	}
	s.keep("a", nil)
	if got, want := hears(t, manager), "-"+shelfName("a", wire.Pidfd); got != want {
		t.Errorf("the manager hears %q, want %q", got, want)
	}
	s.keep("a", nil)
	s.keep("b", testFiles(t, wire.Console))
	if got, want := hears(t, manager), "+"+shelfName("b", wire.Console); got != want {
		t.Errorf("the manager hears %q, want %q", got, want)
	}
}

// TestShelfOfDead: while nobody listens, what comes and goes leaves nothing to be told; what is left is told later. Nobody
// waits for long.
func TestShelfOfDead(t *testing.T) {
	leakcheck.Check(t)
	s, manager := testShelf(t)
	t.Cleanup(s.close)
	s.keep("gone", testFiles(t, wire.Pidfd))
	s.keep("stays", testFiles(t, wire.Pidfd))
	name, e := s.next()
	s.told(name, e, unix.EAGAIN) // it may have been told all the same
	s.await(t.Context(), "stays")
	s.keep("gone", nil)
	for range 3 {
		s.keep("brief", testFiles(t, wire.Pidfd))
		s.keep("brief", nil)
	}
	if want := []string{shelfName("gone", wire.Pidfd), shelfName("stays", wire.Pidfd)}; !slices.Equal(s.queue, want) || len(s.errands) != 2 {
		t.Errorf("to be told are %q, want %q", s.queue, want)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { <-ended })
	go func() {
		defer close(ended)
		s.run(t.Context())
	}()
	for _, want := range []string{"-" + shelfName("gone", wire.Pidfd), "+" + shelfName("stays", wire.Pidfd)} {
		if got := hears(t, manager); got != want {
			t.Errorf("the manager hears %q, want %q", got, want)
		}
	}
}

// TestShelfChangesItsMind: what is dropped while the manager is being told to keep it is dropped after that, and the other
// way round.
func TestShelfChangesItsMind(t *testing.T) {
	leakcheck.Check(t)
	s, _ := testShelf(t)
	t.Cleanup(s.close)
	tell := func(meanwhile func()) string {
		name, e := s.next()
		if e == nil {
			return "nothing"
		}
		meanwhile()
		s.told(name, e, nil)
		if e.file == nil {
			return "drop"
		}
		return "keep"
	}
	files := testFiles(t, wire.Console)
	s.keep("c", files)
	for _, want := range []string{"keep", "drop", "keep"} {
		got := tell(func() {
			if want == "drop" {
				s.keep("c", files)
			} else {
				s.keep("c", nil)
			}
		})
		if got != want {
			t.Errorf("the manager is told to %s, want %s", got, want)
		}
	}
	if got := tell(func() {}); got != "drop" {
		t.Errorf("the manager is told to %s, want drop", got)
	}
	if got := tell(func() {}); got != "nothing" || len(s.stored) != 0 {
		t.Errorf("at the end there is %s to tell, stored is %v", got, s.stored)
	}
}

// TestShelfClaim: of what a predecessor has left, containers get their own, and the rest is dropped.
func TestShelfClaim(t *testing.T) {
	leakcheck.Check(t)
	s, _ := testShelf(t)
	t.Cleanup(s.close)
	left := notify.Inherited{}
	for _, name := range []string{shelfName("a", wire.Pidfd), shelfName("a", wire.Console), shelfName("gone", wire.Pidfd), "foreign"} {
		left[name] = testFiles(t, "it")["it"]
	}
	claimed := s.claim(left, []string{"a", "new"})
	if len(claimed) != 1 || len(claimed["a"]) != 2 || claimed["a"][wire.Console] == nil {
		t.Errorf("claimed %v, want terminal and pidfd of a", claimed)
	}
	slices.Sort(s.queue)
	want := []string{shelfName("gone", wire.Pidfd), "foreign"}
	slices.Sort(want)
	if !slices.Equal(s.queue, want) {
		t.Errorf("to be dropped are %q, want %q", s.queue, want)
	}
	s.keep("a", claimed["a"])
	if len(s.queue) != 2 {
		t.Errorf("what the manager has is told again: %q", s.queue)
	}
}
