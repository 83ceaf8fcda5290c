package leakcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// maxStacks bounds the text of all goroutines.
const maxStacks = 16 << 20

// permanent are functions whose goroutines run until the process exits, by design of their library.
var permanent = []string{
	"testing.",           // the test itself and its runner
	"os/signal.",         // started by the first signal.Notify
	"runtime.ensureSigM", // the same
	"k8s.io/klog/v2.",    // flushes its buffers every few seconds
}

// countDescriptors lists the open descriptors of this process.
func countDescriptors() (counts, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list descriptors: %w", err)
	}
	all := counts{}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the descriptor that read the directory
		}
		if err != nil {
			return nil, fmt.Errorf("read descriptor %s: %w", e.Name(), err)
		}
		// The poller of the Go runtime opens these two when it is first needed.
		if target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		id := e.Name() + " " + target
		all[id] = fmt.Sprintf("%s -> %s", e.Name(), target)
	}
	return all, nil
}

// countGoroutines lists the goroutines of this process, without permanent ones.
func countGoroutines() (counts, error) {
	buf := make([]byte, 1<<20)
	n := runtime.Stack(buf, true)
	for n == len(buf) && n < maxStacks {
		buf = make([]byte, 2*len(buf))
		n = runtime.Stack(buf, true)
	}
	return parseStacks(string(buf[:n])), nil
}

func parseStacks(text string) counts {
	all := counts{}
	for i, stack := range strings.Split(text, "\n\n") {
		head, body, _ := strings.Cut(stack, "\n")
		// "goroutine 12 [running]:"; the number is not reused. The first one is the caller.
		id, _, _ := strings.Cut(head, " [")
		if i == 0 || id == "" || isPermanent(body) {
			continue
		}
		all[id] = head + "\n      " + strings.ReplaceAll(strings.TrimSpace(body), "\n", "\n      ")
	}
	return all
}

// isPermanent looks at where a goroutine begins: its first function and the one which created it.
func isPermanent(stack string) bool {
	lines := strings.Split(strings.TrimSpace(stack), "\n")
	creator := ""
	if n := len(lines); n >= 2 && strings.HasPrefix(lines[n-2], "created by ") {
		creator = strings.TrimPrefix(lines[n-2], "created by ")
		lines = lines[:n-2]
	}
	first := ""
	if n := len(lines); n >= 2 {
		first = lines[n-2]
	}
	for _, f := range permanent {
		if strings.HasPrefix(first, f) || strings.HasPrefix(creator, f) {
			return true
		}
	}
	return false
}
