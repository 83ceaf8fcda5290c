package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Close removes every pod through the API and ends both programs. What it finds left of pods is an error: a leak of
// Berth's. The context must not be that of work which may have been cancelled.
func (n *Node) Close(ctx context.Context) error {
	select {
	case <-n.ended: // a test killed it: only a running daemon can remove pods
		if err := n.StartDaemon(ctx); err != nil {
			return errors.Join(err, n.EndShim(unix.SIGKILL), n.conn.Close())
		}
	default:
	}
	err := n.RemovePods(ctx)
	if err == nil {
		err = n.leftovers()
	}
	err = errors.Join(err, n.StopDaemon())
	if err == nil {
		// Without a container and a daemon it has no reason to stay.
		err = n.EndShim(0)
	}
	if err != nil {
		err = errors.Join(err, n.EndShim(unix.SIGKILL))
	}
	return errors.Join(err, n.conn.Close())
}

// RemovePods stops and removes every pod.
func (n *Node) RemovePods(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callDeadline)
	defer cancel()
	list, err := n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list pods to remove them: %w", err)
	}
	var errs []error
	for _, p := range list.GetItems() {
		if _, err := n.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
			errs = append(errs, fmt.Errorf("stop pod %s: %w", p.GetMetadata().GetName(), err))
		}
		if _, err := n.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
			errs = append(errs, fmt.Errorf("remove pod %s: %w", p.GetMetadata().GetName(), err))
		}
	}
	return errors.Join(errs...)
}

// leftovers looks for files of pods where there are no pods.
func (n *Node) leftovers() error {
	var errs []error
	for _, dir := range []string{
		filepath.Join(n.Config.Root, "pods"), filepath.Join(n.Config.State, "ns"), filepath.Join(n.Config.State, "pods"),
		filepath.Join(n.Config.State, "containers"),
	} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("look for leftovers: %w", err))
		}
		for _, e := range entries {
			errs = append(errs, fmt.Errorf("%s is left although no pod is", filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// ShimPID is the process of the node's berth-shim, or 0 if there is none.
func (n *Node) ShimPID() (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("look for berth-shim: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // it ended while we looked
		}
		argv := bytes.Split(line, []byte{0})
		if filepath.Base(string(argv[0])) == "berth-shim" && strings.Contains(string(line), n.Config.State) {
			return pid, nil
		}
	}
	return 0, nil
}

// EndShim sends a signal to berth-shim and waits for its end; signal 0 only waits. It is no error if there is none.
func (n *Node) EndShim(sig unix.Signal) (err error) {
	pid, err := n.ShimPID()
	if err != nil || pid == 0 {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open berth-shim's process %d: %w", pid, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send signal %d to berth-shim: %w", sig, err)
	}
	for end := time.Now().Add(stopDeadline); ; {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(end).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for the end of berth-shim: %w", err)
		}
		if ready == 0 {
			return fmt.Errorf("berth-shim (process %d) is still running after %v", pid, stopDeadline)
		}
		return nil
	}
}
