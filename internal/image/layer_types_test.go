package image

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// block is the header of an entry in the old format, as any program may write it, and its content.
func block(kind byte, name, link, content string, change ...func(header []byte)) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00%011o\x00", len(content), 1_700_000_000))
	h[156] = kind
	copy(h[157:], link)
	copy(h[257:], "ustar\x0000")
	for _, c := range change {
		c(h)
	}
	copy(h[148:], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	padding := make([]byte, (512-len(content)%512)%512)
	return slices.Concat(h, []byte(content), padding)
}

// binaryID writes an owner beyond what octal digits hold, as GNU tar does.
func binaryID(field int, id int64) func([]byte) {
	return func(h []byte) { binary.BigEndian.PutUint64(h[field:], uint64(id)|1<<63) }
}

func record(key, value string) string {
	for n := len(key) + len(value) + 3; ; n++ {
		if text := fmt.Sprintf("%d %s=%s\n", n, key, value); len(text) == n {
			return text
		}
	}
}

func pax(kind byte, records ...string) []byte {
	return block(kind, "pax", "", strings.Join(records, ""))
}

var end = make([]byte, 1024)

// sparseArchives are archives of a file with holes in each format that tar(1) writes.
func sparseArchives(t *testing.T) map[string][]byte {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(30) { // more than one block of the old format's map
		if _, err := f.WriteAt([]byte(fmt.Sprint("data ", i)), i<<16); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(2<<20 + 7); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for name, options := range map[string][]string{
		"old": {"--format=gnu"}, "0.0": {"--format=posix", "--sparse-version=0.0"}, "0.1": {"--format=posix", "--sparse-version=0.1"},
		"1.0": {"--format=posix", "--sparse-version=1.0"},
	} {
		args := append(options, "-C", dir, "-S", "--owner=0", "--group=0", "-c", "sparse")
		if all[name], err = exec.Command("tar", args...).Output(); err != nil {
			t.Fatal(err)
		}
		if len(all[name]) > 1<<20 {
			t.Fatalf("the archive in format %s has %d bytes, it is not sparse", name, len(all[name]))
		}
	}
	return all
}

func gzipped(t *testing.T, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, part := range parts {
		w := gzip.NewWriter(&b)
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func zstdFrames(t *testing.T, parts ...[]byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	out := []byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'} // a skippable frame
	for _, part := range parts {
		out = w.EncodeAll(part, out)
	}
	return out
}

// outline is every file with type, mode, owner, links, time and content.
func outline(t *testing.T, root string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %o %d:%d %d", strings.TrimPrefix(path, root+"/"), st.Mode, st.Uid, st.Gid, st.Nlink)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if line += fmt.Sprintf(" %d %q", st.Mtim.Sec, data); len(data) > 100 {
				line = fmt.Sprintf("%s %d %x", strings.TrimPrefix(path, root+"/"), len(data), sha256.Sum256(data))
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " " + target
		case unix.S_IFCHR:
			line += fmt.Sprint(" ", st.Rdev)
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// layerCase is an archive and what is to come of it. A part of the outline is enough; empty is an empty layer.
type layerCase struct {
	archive []byte
	want    []string
	// refused: neither containerd nor Berth accepts it. alone: only Berth does.
	refused, alone bool
	packed         []byte // what comes from the registry if it is not the archive itself
}

func layerCases(t *testing.T) map[string]layerCase {
	file := func(name string) []byte { return block('0', name, "", "content") }
	joined := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	long := strings.Repeat("d/", 60) + strings.Repeat("n", 120)
	sparse := fmt.Sprintf("sparse %d ", 2<<20+7)
	formats := sparseArchives(t)
	return map[string]layerCase{
		"sparse 0.0": {archive: formats["0.0"], want: []string{sparse}}, "sparse 0.1": {archive: formats["0.1"], want: []string{sparse}},
		"sparse 1.0": {archive: formats["1.0"], want: []string{sparse}}, "sparse old": {archive: formats["old"], want: []string{sparse}, alone: true},
		"contiguous":        {archive: joined(block('7', "c", "", "content"), end), want: []string{`c 100644 0:0 1 1700000000 "content"`}, alone: true},
		"unknown type":      {archive: joined(block('Z', "z", "", "x"), end), refused: true},
		"old regular":       {archive: joined(block(0, "f", "", "content"), end), want: []string{`f 100644 0:0 1 1700000000 "content"`}},
		"old directory":     {archive: joined(block(0, "d/", "", ""), end), want: []string{"d 40644"}},
		"global header":     {archive: joined(pax('g', record("comment", "x")), file("f"), end), want: []string{"f "}},
		"long name":         {archive: joined(block('L', "././@LongLink", "", long+"\x00"), file("short"), end), want: []string{long + " 100644"}},
		"long link":         {archive: joined(block('K', "././@LongLink", "", long+"\x00"), block('2', "l", "short", ""), end), want: []string{"l 120777 0:0 1 " + long}},
		"pax path":          {archive: joined(pax('x', record("path", "ü/ß")), file("ascii"), end), want: []string{"ü/ß 100644"}},
		"dot and root":      {archive: joined(block('5', "./", "", ""), block('5', "/", "", ""), file("./f"), end), want: []string{"f "}},
		"duplicates":        {archive: joined(file("f"), block('0', "f", "", "again"), end), want: []string{`f 100644 0:0 1 1700000000 "again"`}},
		"file to directory": {archive: joined(file("f"), block('5', "f", "", ""), file("f/below"), end), want: []string{"f 40644", "f/below "}},
		"directory to file": {archive: joined(file("f/below"), file("f"), end), want: []string{"f 100644"}},
		"link to link":      {archive: joined(block('2', "s", "nowhere", ""), block('1', "h", "s", ""), end), want: []string{"h 120777 0:0 2 nowhere", "s 120777 0:0 2"}},
		"whiteout of none":  {archive: joined(file(".wh.none"), file("f"), end), want: []string{"f "}},
		"opaque none":       {archive: joined(file("none/.wh..wh..opq"), end), want: []string{"none 40755"}},
		"hard link below":   {archive: joined(block('1', "h", "of/a/lower/layer", ""), end), refused: true},
		"no end":            {archive: file("f"), want: []string{"f "}},
		"half an end":       {archive: joined(file("f"), end[:512]), want: []string{"f "}},
		"cut":               {archive: file("f")[:515], refused: true},
		"garbage after":     {archive: joined(file("f"), end, []byte("garbage that no reader of archives sees")), want: []string{"f "}},
		"padding":           {archive: joined(file("f"), make([]byte, 1<<20)), want: []string{"f "}},
		"empty archive":     {archive: end}, "no bytes at all": {archive: []byte{}},
		"gzip members":        {archive: joined(file("f"), file("g"), end), packed: gzipped(t, file("f"), file("g"), nil, end), want: []string{"f ", "g "}},
		"zstd frames":         {archive: joined(file("f"), file("g"), end), packed: zstdFrames(t, file("f"), file("g"), end), want: []string{"f ", "g "}},
		"gzip of nothing":     {archive: []byte{}, packed: gzipped(t, nil)},
		"bad record":          {archive: joined(pax('x', "9 bad\n"), file("f"), end), refused: true},
		"bad time":            {archive: joined(pax('x', record("mtime", "yesterday")), file("f"), end), refused: true},
		"time far away":       {archive: joined(pax('x', record("mtime", "99999999999999")), file("f"), end), want: []string{`f 100644 0:0 1 0 "content"`}},
		"time before 1970":    {archive: joined(pax('x', record("mtime", "-5.5")), file("f"), end), want: []string{`f 100644 0:0 1 0 "content"`}},
		"large owner":         {archive: joined(block('0', "f", "", "", binaryID(108, 1<<31+5), binaryID(116, 1<<31+6)), end), want: []string{"f 100644 2147483653:2147483654"}},
		"unknown attribute":   {archive: joined(pax('x', record("SCHILY.fflags", "x"), record("VENDOR.any", "y")), file("f"), end), want: []string{"f "}},
		"trusted attribute":   {archive: joined(pax('x', record("SCHILY.xattr.trusted.x", "y")), file("f"), end), want: []string{"f "}},
		"device out of range": {archive: joined(block('3', "c", "", "", func(h []byte) { binary.BigEndian.PutUint64(h[329:], 1<<40|1<<63) }), end), refused: true},
	}
}

// TestLayerTypes unpacks archives with what programs write into them, as the lowest layer and as a higher one, and
// compares the outcome with that of containerd's own function. Berth accepts what containerd does, and sparse files of
// GNU tar and contiguous files besides.
func TestLayerTypes(t *testing.T) {
	for name, c := range layerCases(t) {
		for _, lower := range []bool{false, true} {
			own, theirs := t.TempDir(), t.TempDir()
			packed := c.packed
			if packed == nil {
				packed = c.archive
			}
			l, err := unpackLayer(t.Context(), bytes.NewReader(packed), unpackTarget{dir: own, lower: lower}, &unpackLimits{max: 1 << 30})
			var options []archive.ApplyOpt
			if lower {
				options = append(options, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
			}
			_, peer := archive.Apply(t.Context(), theirs, bytes.NewReader(c.archive), options...)
			switch {
			case (err != nil) != c.refused || (peer != nil) != (c.refused || c.alone):
				t.Errorf("%s (lower layers: %v): got %v, containerd %v; want that both refuse: %v, that only Berth accepts: %v", name, lower, err, peer, c.refused, c.alone)
			case c.refused:
			case l.digest.Encoded() != fmt.Sprintf("%x", sha256.Sum256(c.archive)):
				t.Errorf("%s: digest of the archive: got %s", name, l.digest)
			default:
				got := outline(t, own)
				if want := outline(t, theirs); !c.alone && got != want {
					t.Errorf("%s (lower layers: %v): got\n%s\ncontainerd has\n%s", name, lower, got, want)
				}
				for _, want := range c.want {
					if !strings.Contains("\n"+got, "\n"+want) {
						t.Errorf("%s (lower layers: %v): got\n%s\nwant %s", name, lower, got, want)
					}
				}
				if len(c.want) == 0 && got != "" {
					t.Errorf("%s: got\n%s\nwant nothing", name, got)
				}
			}
		}
	}
}
