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

// testFDStore is an fdStore whose service manager is the test.
func testFDStore(t *testing.T) (*fdStore, *servicemanager.Socket) {
	t.Helper()
	manager := servicemanager.Listen(t, filepath.Join(leakcheck.Dir(t), "notify"))
	t.Setenv("NOTIFY_SOCKET", manager.Path)
	t.Setenv("FDSTORE", "1000")
	m, err := notify.Find()
	if err != nil {
		t.Fatal(err)
	}
	return newFDStore(m.Store(), slog.New(slog.DiscardHandler)), manager
}

// hears returns the next operation of the manager: + or - and the name.
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

// TestFDStore: the service manager gets new and dropped descriptors, each once; no request waits longer than for that.
func TestFDStore(t *testing.T) {
	leakcheck.Check(t)
	s, manager := testFDStore(t)
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

// TestFDStoreWithoutManager: without a manager, descriptors that come and go leave no operation; the rest is sent later. No request
// waits for long.
func TestFDStoreWithoutManager(t *testing.T) {
	leakcheck.Check(t)
	s, manager := testFDStore(t)
	t.Cleanup(s.close)
	s.keep("gone", testFiles(t, wire.Pidfd))
	s.keep("stays", testFiles(t, wire.Pidfd))
	name, e := s.next()
	s.finished(name, e, unix.EAGAIN) // it may have arrived all the same
	s.await(t.Context(), "stays")
	s.keep("gone", nil)
	for range 3 {
		s.keep("brief", testFiles(t, wire.Pidfd))
		s.keep("brief", nil)
	}
	if want := []string{shelfName("gone", wire.Pidfd), shelfName("stays", wire.Pidfd)}; !slices.Equal(s.queue, want) || len(s.pending) != 2 {
		t.Errorf("pending are %q, want %q", s.queue, want)
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

// TestFDStoreDropWhileStoring: what is dropped while it is being stored is dropped after that, and the other
// way round.
func TestFDStoreDropWhileStoring(t *testing.T) {
	leakcheck.Check(t)
	s, _ := testFDStore(t)
	t.Cleanup(s.close)
	tell := func(meanwhile func()) string {
		name, e := s.next()
		if e == nil {
			return "nothing"
		}
		meanwhile()
		s.finished(name, e, nil)
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
			t.Errorf("the manager gets %s, want %s", got, want)
		}
	}
	if got := tell(func() {}); got != "drop" {
		t.Errorf("the manager gets %s, want drop", got)
	}
	if got := tell(func() {}); got != "nothing" || len(s.stored) != 0 {
		t.Errorf("at the end there is %s to tell, stored is %v", got, s.stored)
	}
}

// TestFDStoreClaim: of what a predecessor has left, containers get their own, and the rest is dropped.
func TestFDStoreClaim(t *testing.T) {
	leakcheck.Check(t)
	s, _ := testFDStore(t)
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
		t.Errorf("stored descriptors are sent again: %q", s.queue)
	}
}
