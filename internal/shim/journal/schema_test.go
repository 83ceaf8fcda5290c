package journal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// goldenEntries are what testdata/exits.v1 holds.
var goldenEntries = []Entry{
	{ID: "c1", Status: 9 << 8, Known: true, AtNano: 1764590000000000000},
	{ID: "c1", Status: 9 << 8, Known: true, AtNano: 1764590000000000000, Final: true, OOM: true},
	{ID: "c2", Reason: "nobody held its pidfd", AtNano: 1764590001000000000, Final: true},
	{ID: "c3", Gone: true},
}

// TestGoldenJournal reads a journal as version 0.1.0 wrote it, and writes the same bytes.
func TestGoldenJournal(t *testing.T) {
	golden, err := os.ReadFile("testdata/exits.v1")
	if err != nil {
		t.Fatal(err)
	}
	if entries, good := Parse(golden); good != len(golden) || !slices.Equal(entries, goldenEntries) {
		t.Errorf("journal has %+v in %d of %d bytes, want %+v", entries, good, len(golden), goldenEntries)
	}
	path := filepath.Join(t.TempDir(), "exits")
	j := open(t, path)
	for _, e := range goldenEntries {
		if err := j.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, golden) {
		t.Errorf("journal is written as %q (%v), want %q", now, err, golden)
	}
}

// TestNewerEntriesAreRead: members that a newer version adds to an entry are left out.
func TestNewerEntriesAreRead(t *testing.T) {
	golden, err := os.ReadFile("testdata/exits.v1")
	if err != nil {
		t.Fatal(err)
	}
	body := []byte(`{"id":"c4","status":0,"known":true,"at":1,"cause":"new"}`)
	newer := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
	newer = append(binary.LittleEndian.AppendUint32(newer, crc32.Checksum(body, castagnoli)), body...)
	entries, good := Parse(append(golden, newer...))
	if good != len(golden)+len(newer) || len(entries) != len(goldenEntries)+1 || entries[len(goldenEntries)].ID != "c4" {
		t.Errorf("journal has %+v", entries)
	}
}
