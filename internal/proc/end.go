package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// lookAgain is how often AwaitEnd looks at what the kernel does not tell.
const lookAgain = 100 * time.Millisecond

// exiting is PF_EXITING of the kernel's flags of a task.
const exiting = 4

// AwaitEnd waits for the end of a killed process. Nil means that it runs no
// more and holds nothing: no memory, file or namespace. It may not be a zombie yet:
// see Released.
func AwaitEnd(ctx context.Context, pidfd *os.File) error {
	for {
		var ready int
		err := control(pidfd, func(fd int) (err error) {
			ready, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(lookAgain.Milliseconds()))
			return err
		})
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for the end of a process: %w", err)
		case ready > 0 || Released(pidfd):
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("wait for the end of a process: %w", ctx.Err())
		}
	}
}

// Released tells whether a process that ends has given back all that it had. PID 1
// of a namespace stays like that, neither running nor a zombie, until each process of
// the namespace is reaped. The parent of one may be outside, since it was started
// there, and never do so: no pidfd tells then.
func Released(pidfd *os.File) bool {
	pid, err := pidOf(pidfd)
	if err != nil {
		return false
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*", pid))
	if err != nil || len(tasks) == 0 {
		return false // the pidfd tells
	}
	for _, task := range tasks {
		text, err := os.ReadFile(filepath.Join(task, "stat"))
		if err != nil {
			return false
		}
		if stat, err := parseStat(pid, text); err != nil || stat.Flags&exiting == 0 {
			return false
		}
		// Namespaces are the last that it gives back. Then there is no link.
		if _, err := os.Readlink(filepath.Join(task, "ns", "net")); !errors.Is(err, os.ErrNotExist) {
			return false
		}
	}
	return true
}

// pidOf is the ID that the process of a pidfd has.
func pidOf(pidfd *os.File) (pid int, err error) {
	err = control(pidfd, func(fd int) error {
		text, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
		if err != nil {
			return err
		}
		for line := range bytes.Lines(text) {
			if value, found := bytes.CutPrefix(line, []byte("Pid:")); found {
				pid, err = strconv.Atoi(string(bytes.TrimSpace(value)))
				return err
			}
		}
		return os.ErrNotExist
	})
	return pid, err
}
