package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/proc"
)

const (
	// maxPluginOutput and maxPluginErrors bound what is kept of a plugin's stdout and stderr.
	maxPluginOutput = 1 << 20
	maxPluginErrors = 16 << 10
	// pluginDrain is how long the output of an ended plugin may be held open by a process it left behind.
	pluginDrain = time.Second
	// busyAttempts and busyPause bound the wait for a plugin that is being written; the kernel refuses to run it then.
	busyAttempts = 20
	busyPause    = 100 * time.Millisecond
	// sbinPath is where plugins look for iptables and the like if the daemon's PATH does not say.
	sbinPath = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
)

// plugins runs CNI plugins. It implements invoke.Exec of libcni, whose own would wait for ever for a child of a killed
// plugin, and leave plugins running that a killed daemon has begun.
type plugins struct {
	version.PluginDecoder
}

// FindInPath returns the file of a plugin.
func (*plugins) FindInPath(plugin string, dirs []string) (string, error) {
	if plugin == "" || strings.ContainsRune(plugin, filepath.Separator) {
		return "", missingError{fmt.Sprintf("CNI plugin %q: malformed type", plugin)}
	}
	for _, dir := range dirs {
		if path, err := exec.LookPath(filepath.Join(dir, plugin)); err == nil {
			return path, nil
		}
	}
	return "", missingError{fmt.Sprintf("CNI plugin %q is not in %s", plugin, strings.Join(dirs, ", "))}
}

// ExecPlugin runs a plugin, whose whole process group is ended when ctx is done. A plugin that is just being installed is
// waited for.
func (*plugins) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	for attempt := 1; ; attempt++ {
		out, err := execPlugin(ctx, path, stdin, environ)
		if !errors.Is(err, unix.ETXTBSY) || attempt == busyAttempts {
			return out, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, context.Cause(ctx))
		case <-time.After(busyPause):
		}
	}
}

func execPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	stdout, stderr := limitedBuffer{limit: maxPluginOutput}, limitedBuffer{limit: maxPluginErrors}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = withPath(environ)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.WaitDelay = pluginDrain
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }

	began := time.Now()
	err := runOnThread(cmd)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("ended after %s: %w", time.Since(began).Round(time.Millisecond), context.Cause(ctx))
	case stdout.dropped:
		return nil, fmt.Errorf("more than %d bytes of output: %w", maxPluginOutput, errdefs.ErrInternal)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return nil, pluginError(err, stdout.kept, stderr.kept)
	default:
		return stdout.kept, nil
	}
}

// runOnThread runs cmd to its end on one thread: the kernel sends the parent death signal when the thread that forked ends,
// not the process.
func runOnThread(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return err
	}
	score := proc.LimitOOMScore(cmd.Process.Pid, 0)
	return errors.Join(score, cmd.Wait())
}

// pluginError makes an error of what a plugin said: JSON on stdout, as the specification asks for, or anything on stderr.
func pluginError(err error, stdout, stderr []byte) error {
	said := types.Error{}
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		return &said
	}
	text := strings.TrimSpace(string(stderr))
	if text == "" {
		text = strings.TrimSpace(string(stdout))
	}
	if text == "" {
		return fmt.Errorf("no error message: %w", err)
	}
	const maxText = 1024
	if len(text) > maxText {
		text = text[:maxText] + "…"
	}
	return fmt.Errorf("%w: %s", err, text)
}

// classify adds the kind of a plugin's error.
func classify(err error) error {
	if err == nil || errdefs.IsFailedPrecondition(err) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return err
	}
	var said *types.Error
	if !errors.As(err, &said) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnknown)
	}
	switch said.Code {
	case types.ErrTryAgainLater:
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	case types.ErrInvalidNetworkConfig, types.ErrIncompatibleCNIVersion, types.ErrUnsupportedField, types.ErrDecodingFailure, types.ErrInvalidEnvironmentVariables:
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	default:
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnknown)
	}
}

// withPath makes sure that plugins find the tools of the system.
func withPath(environ []string) []string {
	for i, entry := range environ {
		if path, found := strings.CutPrefix(entry, "PATH="); found {
			environ[i] = "PATH=" + path + ":" + sbinPath
			return environ
		}
	}
	return append(environ, "PATH="+sbinPath)
}

// limitedBuffer keeps the beginning of what is written to it.
type limitedBuffer struct {
	kept    []byte
	limit   int
	dropped bool
}

// Write implements io.Writer. It never fails, so that the plugin is not stopped by SIGPIPE in the middle of its work.
func (b *limitedBuffer) Write(p []byte) (int, error) {
	keep := min(len(p), b.limit-len(b.kept))
	b.dropped = b.dropped || keep < len(p)
	b.kept = append(b.kept, p[:keep]...)
	return len(p), nil
}
