package cri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// socketMode lets root call the daemon, groupMode a group too. Access is equal to root on the node.
	socketMode = 0o600
	groupMode  = 0o660
	// socketDirMode lets others reach the socket and not list what is there.
	socketDirMode = 0o711
	// probeTimeout is how long a server has to answer to count as alive, probeStep how
	// often that is tried.
	probeTimeout = time.Second
	probeStep    = 20 * time.Millisecond
)

// Listen opens the unix socket of a unix:// endpoint. A socket that no
// server answers any more is replaced; if one does, the error is an
// [errdefs.ErrAlreadyExists]. The socket appears with its final mode. Members of group may call the daemon; no other user but root
// if it is negative.
func Listen(ctx context.Context, endpoint string, group int) (net.Listener, error) {
	path, err := socketPath(endpoint)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), socketDirMode); err != nil {
		return nil, fmt.Errorf("make the directory of socket %s: %w", path, err)
	}
	if err := refuseLive(ctx, path); err != nil {
		return nil, err
	}
	// The name is given last, so no client meets a socket of another mode or
	// one that does not answer.
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove a left-over socket: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", fresh)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", endpoint, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := publish(fresh, path, group); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(fresh))
	}
	made, err := os.Stat(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", endpoint, err), l.Close())
	}
	return &socket{Listener: l, path: path, made: made}, nil
}

// socketPath answers the path of a unix:// endpoint.
func socketPath(endpoint string) (string, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "unix" || u.Host != "" || !filepath.IsAbs(u.Path) {
		return "", fmt.Errorf("listen %q: want unix:// and an absolute path, such as unix:///run/berth/berth.sock: %w",
			endpoint, errdefs.ErrInvalidArgument)
	}
	return filepath.Clean(u.Path), nil
}

// refuseLive is an error if a server answers at path, or if what is there is
// no socket.
func refuseLive(ctx context.Context, path string) error {
	there, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at socket %s: %w", path, err)
	}
	if there.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("listen on %s: there is something that is no socket: %w", path, errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist):
			return nil
		case timedOut(err): // as when the queue of who listens is full
		case err != nil && ctx.Err() == nil:
			return fmt.Errorf("probe for a server on %s: %w", path, err)
		case err == nil:
			err = conn.Close()
		}
		// A child that a dead daemon has just forked holds its socket until it
		// executes its program, so once is not enough.
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("listen on %s: another daemon answers there: %w", path, errdefs.ErrAlreadyExists), err)
		case <-time.After(probeStep):
		}
	}
}

// timedOut tells that a dial has met its deadline, of which the context may learn later than the dialer, or a full queue.
func timedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// publish names a socket that has its mode and its group.
func publish(fresh, path string, group int) error {
	mode := os.FileMode(socketMode)
	if group >= 0 {
		mode = groupMode
		if err := os.Lchown(fresh, -1, group); err != nil {
			return fmt.Errorf("give socket %s to group %d: %w", path, group, err)
		}
	}
	if err := os.Chmod(fresh, mode); err != nil {
		return fmt.Errorf("set the mode of socket %s: %w", path, err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("name socket %s: %w", path, err)
	}
	return nil
}

// socket removes its file when it is closed, unless a successor has replaced it.
type socket struct {
	net.Listener
	path string
	made os.FileInfo
	once sync.Once
}

// Close implements [net.Listener].
func (s *socket) Close() error {
	var err error
	s.once.Do(func() {
		if now, statErr := os.Stat(s.path); statErr == nil && os.SameFile(now, s.made) {
			err = os.Remove(s.path)
		}
	})
	return errors.Join(err, s.Listener.Close())
}
