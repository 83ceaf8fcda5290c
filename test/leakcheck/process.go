package leakcheck

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	kindProcesses = "processes"
	// orphanGrace is how long a zombie child is left to the code that started it. After that it is an orphan, reparented
	// to the test as its subreaper, and is reaped.
	orphanGrace = 300 * time.Millisecond
	// maxCommandLine is how much of a command line a report shows.
	maxCommandLine = 160
)

// process is one entry of /proc.
type process struct {
	pid, parent int
	state       byte
	comm        string
	// started is the start time in ticks since boot: with the PID it identifies a process uniquely.
	started string
}

func (p process) id() string { return fmt.Sprintf("%d@%s", p.pid, p.started) }

// words describes the process.
func (p process) words() string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	command := strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
	if err != nil || command == "" {
		command = "[" + p.comm + "]"
	}
	if len(command) > maxCommandLine {
		command = command[:maxCommandLine] + "..."
	}
	return fmt.Sprintf("pid %d, state %c, parent %d: %s", p.pid, p.state, p.parent, command)
}

// becomeSubreaper makes orphaned descendants children of this process instead of PID 1's.
func becomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become child subreaper: %w", err)
	}
	return nil
}

// countProcesses finds every descendant of this process.
func countProcesses() (counts, error) {
	found, err := descendants()
	if err != nil {
		return nil, err
	}
	all := counts{}
	for _, p := range found {
		all[p.id()] = p.words()
	}
	return all, nil
}

// Processes describes the descendants of this process, for the report of a failure.
func Processes() string {
	found, err := descendants()
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for _, p := range found {
		out.WriteString(p.words() + "\n")
	}
	return out.String()
}

func descendants() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	children := map[int][]process{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, err := readProcess(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // ended while we looked
		}
		if err != nil {
			return nil, err
		}
		children[p.parent] = append(children[p.parent], p)
	}
	var found []process
	for queue := []int{os.Getpid()}; len(queue) > 0; queue = queue[1:] {
		for _, p := range children[queue[0]] {
			found = append(found, p)
			queue = append(queue, p.pid)
		}
	}
	return found, nil
}

// readProcess parses /proc/PID/stat. The name in it is in parentheses and may itself contain any character.
func readProcess(pid int) (process, error) {
	const fieldsAfterName = 20 // up to and including starttime
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, fmt.Errorf("read state of process %d: %w", pid, err)
	}
	open, shut := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || shut < open {
		return process{}, fmt.Errorf("read state of process %d: no name in %q", pid, data)
	}
	rest := strings.Fields(string(data[shut+1:]))
	if len(rest) < fieldsAfterName {
		return process{}, fmt.Errorf("read state of process %d: %d fields in %q", pid, len(rest), data)
	}
	parent, err := strconv.Atoi(rest[1])
	if err != nil {
		return process{}, fmt.Errorf("read parent of process %d: %w", pid, err)
	}
	comm := string(data[open+1 : shut])
	return process{pid: pid, parent: parent, state: rest[0][0], comm: comm, started: rest[fieldsAfterName-1]}, nil
}

// reapOrphans reaps zombie children that no code waits for.
func reapOrphans(before counts, waited time.Duration) {
	if waited < orphanGrace {
		return
	}
	found, err := descendants()
	if err != nil {
		return // the count that follows reports it
	}
	for _, p := range found {
		if _, known := before[p.id()]; known || p.state != 'Z' || p.parent != os.Getpid() {
			continue
		}
		reap(p.pid)
	}
}

// reap asks once for the exit status of a dead child. Another goroutine may have been quicker.
func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// killLeaked ends what the test has left running, after it was reported, so that the next test finds a clean machine.
func killLeaked(t testing.TB, before counts) {
	t.Helper()
	for range 10 {
		found, err := descendants()
		if err != nil {
			t.Errorf("end leaked processes: %v", err)
			return
		}
		left := 0
		for _, p := range found {
			if _, known := before[p.id()]; known {
				continue
			}
			left++
			if err := unix.Kill(p.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				t.Errorf("end leaked process %d: %v", p.pid, err)
			}
			if p.parent == os.Getpid() {
				reap(p.pid)
			}
		}
		if left == 0 {
			return
		}
		time.Sleep(settleStep)
	}
}
