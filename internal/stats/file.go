package stats

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// fileBuffer is the size of the buffers that control files are read into; few
// need more.
const fileBuffer = 16 << 10

var buffers = sync.Pool{New: func() any { return new([fileBuffer]byte) }}

// absent tells whether err means that a control file or its cgroup does not
// exist. A file of a controller that is switched off answers ENOTSUP, one
// whose cgroup went after it was opened ENODEV.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENOTSUP)
}

// readFile returns the content of a control file. It makes the three system
// calls that are needed and no others, since a node has thousands of these
// files.
func readFile(name string) (text string, err error) { return readStart(name, math.MaxInt) }

// readStart is readFile that stops after limit bytes. It then returns whole
// lines only.
func readStart(name string, limit int) (text string, err error) {
	fd, err := open(name)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	buffer := buffers.Get().(*[fileBuffer]byte)
	defer buffers.Put(buffer)
	var content []byte
	for {
		n, err := unix.Read(fd, buffer[:])
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return "", &fs.PathError{Op: "read", Path: name, Err: err}
		}
		if n == 0 {
			return string(content), nil
		}
		content = append(content, buffer[:n]...)
		if len(content) > limit {
			return string(content[:bytes.LastIndexByte(content, '\n')+1]), nil
		}
	}
}

func open(name string) (int, error) {
	for {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, syscall.EINTR) {
			return fd, err
		}
	}
}

// reader reads control files of one cgroup and keeps the first error, so that
// the code that lists the files reads like a table.
type reader struct {
	err error
	// brief leaves out what few want to know.
	brief bool
}

// text returns the content of a file, "" if it is absent.
func (r *reader) text(dir, file string) string {
	if r.err != nil || dir == "" {
		return ""
	}
	text, err := readFile(filepath.Join(dir, file))
	if err != nil && !absent(err) {
		r.err = err
	}
	return text
}

// number returns the number in a file; 0 if it is absent or says "max".
func (r *reader) number(dir, file string) uint64 {
	return r.parse(file, strings.TrimSpace(r.text(dir, file)))
}

// table returns the numbers of a file of the form "key value\n".
func (r *reader) table(dir, file string) map[string]uint64 {
	table := map[string]uint64{}
	for line := range strings.Lines(r.text(dir, file)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok {
			table[key] = r.parse(file, value)
		}
	}
	return table
}

// parse reads a number. "max" and the huge numbers by which v1 says the same
// are 0, and so are negative numbers: v1 writes -1 for "no limit".
func (r *reader) parse(file, text string) uint64 {
	if text == "" || text == "max" || strings.HasPrefix(text, "-") {
		return 0
	}
	number, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		if r.err == nil {
			r.err = fmt.Errorf("%s: %w", file, err)
		}
		return 0
	}
	return number
}
