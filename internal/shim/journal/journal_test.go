package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func open(t *testing.T, path string) *Journal {
	t.Helper()
	j, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

// TestTornEndIsCut cuts the file at every byte: what was complete stays, and the next entry can be appended.
func TestTornEndIsCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "exits")
	j := open(t, path)
	for i := range 3 {
		if err := j.Append(Entry{ID: fmt.Sprint("c", i), Status: uint32(i) << 8, Known: true}); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) {
		torn := filepath.Join(t.TempDir(), "exits")
		if err := os.WriteFile(torn, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open(torn)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		complete := len(j.last)
		if complete > 2 {
			t.Fatalf("cut at %d: %d entries", cut, complete)
		}
		if err := j.Append(Entry{ID: "late", Known: true}); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		again := open(t, torn)
		if _, ok := again.Last("late"); !ok || len(again.last) != complete+1 {
			t.Fatalf("cut at %d: got %v", cut, again.last)
		}
	}
}

// TestForgottenIDIsNew: an ID never has the exit of its former owner.
func TestForgottenIDIsNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "exits")
	j := open(t, path)
	if err := j.Append(Entry{ID: "c", Known: true}); err != nil {
		t.Fatal(err)
	}
	if err := j.Forget("c"); err != nil {
		t.Fatal(err)
	}
	if e, ok := open(t, path).Last("c"); ok {
		t.Errorf("got %+v", e)
	}
}

func TestForgetAndCompact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "exits")
	j := open(t, path)
	for i := range 5000 {
		id := fmt.Sprint("c", i)
		if err := j.Append(Entry{ID: id, Known: true, Final: true}); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			continue
		}
		if err := j.Forget(id); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > compactAt+headerSize+MaxBody {
		t.Errorf("file has %d bytes", info.Size())
	}
	again := open(t, path)
	if err := again.Keep(func(id string) bool { return id == "c0" }); err != nil {
		t.Fatal(err)
	}
	if _, ok := open(t, path).Last("c0"); !ok {
		t.Error("the entry that was kept is gone")
	}
}

// FuzzParse: damage never panics, and what is accepted can be read again.
func FuzzParse(f *testing.F) {
	good, err := frame(Entry{ID: "c", Status: 9, Known: true, AtNano: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(append(good, good[:5]...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, n := Parse(text)
		if n > len(text) {
			t.Fatalf("%d of %d bytes", n, len(text))
		}
		again, m := Parse(text[:n])
		if len(again) != len(entries) || m != n {
			t.Fatalf("not stable: %d/%d entries, %d/%d bytes", len(again), len(entries), m, n)
		}
	})
}
