package supervisor

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLogFile bounds the supervisor's own log, and its predecessor with the suffix ".1".
const maxLogFile = 1 << 20

// LogFile is the supervisor's own log. It is also its standard error, where the Go runtime reports
// a crash. A full file is renamed with the suffix ".1", which replaces an older one.
type LogFile struct {
	path  string
	limit int64

	mu   sync.Mutex // guards what follows
	file *os.File
	size int64
}

// OpenLogFile opens the log and makes it the standard error of the process.
func OpenLogFile(path string) (*LogFile, error) {
	l := &LogFile{path: path, limit: maxLogFile}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *LogFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open supervisor log: %w", err)
	}
	info, err := f.Stat()
	if err == nil {
		err = unix.Dup3(int(f.Fd()), unix.Stderr, 0)
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("make %s the standard error: %w", l.path, err)
	}
	if l.file != nil {
		_ = l.file.Close()
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write appends to the log. When the file cannot be replaced, it grows.
func (l *LogFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > l.limit {
		if err := os.Rename(l.path, l.path+".1"); err == nil {
			if err := l.open(); err != nil {
				return 0, err
			}
		}
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}
