package namespace

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Do runs fn on a thread inside the network namespace that is pinned at path and returns its error. fn must do its network
// system calls itself: a goroutine that it starts is not in the namespace. A path that holds no namespace is an
// [errdefs.ErrNotFound].
func Do(path string, fn func() error) error {
	ns, err := open(path)
	if err != nil {
		return err
	}
	err = onThread(unix.CLONE_NEWNET, func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return fn()
	})
	return errors.Join(err, ns.Close())
}

// DoNew runs fn like [Do], inside a new network namespace that nothing keeps when fn has returned. Its loopback is down.
func DoNew(fn func() error) error {
	return onThread(unix.CLONE_NEWNET, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		return fn()
	})
}

// WithOwnMounts runs fn on a thread that has a copy of the mount table for itself. What fn mounts is visible to no other thread and
// goes with the thread, which ends with fn; so does its working directory.
func WithOwnMounts(fn func() error) error {
	return onOwnThread(unix.CLONE_NEWNS, "copy the mount table", func() error {
		return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}, fn)
}

// WithOwnDirectory runs fn on a thread whose working directory is dir, which is that of the process for everybody else. The
// thread ends with fn.
func WithOwnDirectory(dir string, fn func() error) error {
	return onOwnThread(unix.CLONE_FS, "enter "+dir, func() error { return unix.Chdir(dir) }, fn)
}

// onOwnThread runs fn on a thread that shares no longer with the others what flags say, after setUp, which is said to do
// what. The thread ends with fn: it is not possible to go back.
func onOwnThread(flags int, what string, setUp, fn func() error) error {
	result := make(chan error, 1)
	go offMain(func() {
		// Never unlocked: so the thread ends with the goroutine.
		err := unix.Unshare(flags)
		if err == nil {
			err = setUp()
		}
		if err != nil {
			result <- fmt.Errorf("%s: %w", what, err)
			return
		}
		result <- fn()
	})
	return <-result
}

// offMain runs fn with its goroutine locked to a thread that is not the main thread: /proc/self, and with it every tool
// that asks for the namespaces of this process, shows those of the main thread, and the main thread cannot be ended.
func offMain(fn func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		fn()
		return
	}
	// While this goroutine holds the main thread, the next one gets another.
	done := make(chan struct{})
	go func() {
		defer close(done)
		offMain(fn)
	}()
	<-done
	runtime.UnlockOSThread()
}

// Exists reports whether a namespace is pinned at path (or, for a path in /proc, whether its process is alive).
func Exists(path string) bool {
	return isNamespace(path)
}

func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("network namespace %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(fmt.Errorf("inspect network namespace %s: %w", path, err), f.Close())
	}
	if st.Type != unix.NSFS_MAGIC {
		return nil, errors.Join(fmt.Errorf("network namespace %s: no namespace is mounted there: %w", path, errdefs.ErrNotFound), f.Close())
	}
	return f, nil
}

// onThread runs fn on an OS thread of its own, which fn may move to other namespaces of the given kinds, and brings the
// thread back to those of the process. If that is not possible the thread ends with its goroutine, so that nothing else
// ever runs in the wrong namespace.
func onThread(flags int, fn func() error) error {
	result := make(chan error, 1)
	go offMain(func() {
		err := fn()
		if home := returnHome(flags); home != nil {
			result <- errors.Join(err, home)
			return
		}
		runtime.UnlockOSThread()
		result <- err
	})
	return <-result
}

// returnHome moves the calling thread into the namespaces of the main thread.
func returnHome(flags int) error {
	self, err := unix.PidfdOpen(unix.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("open own process: %w", err)
	}
	if err := unix.Setns(self, flags); err != nil {
		err = fmt.Errorf("return to the namespaces of the daemon: %w", err)
		return errors.Join(err, unix.Close(self))
	}
	return unix.Close(self)
}
