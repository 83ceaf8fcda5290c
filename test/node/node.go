// Package node runs the real programs as one node of a cluster would: a berthd with its own root, state and socket, its
// berth-shim, and clients for both CRI services. The test harness and the demo share it.
package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
)

const (
	// startDeadline is how long berthd may take until it answers.
	startDeadline = 60 * time.Second
	// stopDeadline is how long a program may take to end after SIGTERM.
	stopDeadline = 30 * time.Second
	// callDeadline bounds each CRI call that this package makes by itself.
	callDeadline = 2 * time.Minute
	// maxMessage is the size of messages that the kubelet accepts.
	maxMessage = 16 << 20
)

// Options describe a node.
type Options struct {
	// Bin is the directory of the programs.
	Bin string
	// Dir is where all directories of the node are; it must be short, for it holds unix sockets.
	Dir string
	// Configure changes the configuration that the node would have.
	Configure func(*config.Config)
	// Prepare, if not nil, changes how berthd is started, each time. What it returns is called when that is done.
	Prepare func(*exec.Cmd) (started func())
}

// Node is one berthd with what belongs to it.
type Node struct {
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient
	// Config is what the daemon is configured with.
	Config *config.Config

	opts   Options
	conn   *grpc.ClientConn
	daemon *exec.Cmd
	ended  chan struct{} // closed when daemon has ended
	result error         // how; read it after ended
}

// Start writes a configuration, starts berthd and returns when it answers. The caller ends it with Close.
func Start(ctx context.Context, opts Options) (_ *Node, err error) {
	n := &Node{opts: opts, Config: config.Default()}
	n.Config.Root = filepath.Join(opts.Dir, "root")
	n.Config.State = filepath.Join(opts.Dir, "run")
	n.Config.Listen = "unix://" + n.Socket()
	n.Config.Log.Level = "debug"
	n.Config.Image.RegistryConfigDir = filepath.Join(opts.Dir, "certs.d")
	n.Config.Image.RegistryConfigDirs = []string{}
	n.Config.Network.NetNSDir = filepath.Join(opts.Dir, "netns")
	n.Config.Network.CNIConfDir = filepath.Join(opts.Dir, "net.d")
	if opts.Configure != nil {
		opts.Configure(n.Config)
	}
	if err := os.WriteFile(n.configFile(), []byte(n.Config.TOML()), 0o600); err != nil {
		return nil, fmt.Errorf("write the configuration of the node: %w", err)
	}
	n.conn, err = grpc.NewClient(n.Config.Listen,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", n.Config.Listen, err)
	}
	n.Runtime = runtimeapi.NewRuntimeServiceClient(n.conn)
	n.Images = runtimeapi.NewImageServiceClient(n.conn)
	if err := n.StartDaemon(ctx); err != nil {
		return nil, errors.Join(err, n.conn.Close())
	}
	return n, nil
}

// Socket is the path of the node's CRI socket.
func (n *Node) Socket() string { return filepath.Join(n.opts.Dir, "berth.sock") }

// Dir is where all directories of the node are.
func (n *Node) Dir() string { return n.opts.Dir }

func (n *Node) configFile() string { return filepath.Join(n.opts.Dir, "config.toml") }
func (n *Node) logFile() string    { return filepath.Join(n.opts.Dir, "berthd.log") }

// StartDaemon starts berthd, which must not be running, and returns when it answers.
func (n *Node) StartDaemon(ctx context.Context) (err error) {
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of berthd: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	// The context of the caller ends the wait, not the daemon.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), n.Program("berthd"), "--config", n.configFile())
	cmd.Stdout, cmd.Stderr = log, log
	// A signal to the terminal's group is for the caller.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if n.opts.Prepare != nil {
		defer n.opts.Prepare(cmd)()
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start berthd: %w", err)
	}
	ended := make(chan struct{})
	n.daemon, n.ended = cmd, ended
	go func() {
		n.result = cmd.Wait()
		close(ended)
	}()
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	_, err = n.Runtime.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	for status.Code(err) == codes.Unavailable && ctx.Err() == nil {
		// The connection was the last daemon's, which the client has only noticed now.
		_, err = n.Runtime.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	}
	if err != nil {
		return fmt.Errorf("wait for berthd to answer: %w; its log ends:\n%s", errors.Join(err, n.Kill()), n.LogTail())
	}
	return nil
}

// Program is the path of one of the node's programs.
func (n *Node) Program(name string) string { return filepath.Join(n.opts.Bin, name) }

// PID is the process of berthd.
func (n *Node) PID() int { return n.daemon.Process.Pid }

// Ended is closed when berthd is not running.
func (n *Node) Ended() <-chan struct{} { return n.ended }

// Kill ends berthd with SIGKILL.
func (n *Node) Kill() error { return n.end(unix.SIGKILL) }

// StopDaemon ends berthd as an init system does. Pods go on.
func (n *Node) StopDaemon() error {
	if err := n.end(unix.SIGTERM); err != nil {
		return err
	}
	if n.result != nil {
		return fmt.Errorf("berthd ended with %w; its log ends:\n%s", n.result, n.LogTail())
	}
	return nil
}

func (n *Node) end(sig unix.Signal) error {
	if err := n.daemon.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to berthd: %w", sig, err)
	}
	select {
	case <-n.ended:
		return nil
	case <-time.After(stopDeadline):
		stuck := fmt.Errorf("berthd is still running %v after %v", stopDeadline, sig)
		// SIGQUIT makes Go write down where every goroutine is.
		if err := n.daemon.Process.Signal(unix.SIGQUIT); err != nil {
			return errors.Join(stuck, err)
		}
		<-n.ended
		return fmt.Errorf("%w; its log ends:\n%s", stuck, n.LogTail())
	}
}

// Restart ends berthd with the signal and starts it again.
func (n *Node) Restart(ctx context.Context, sig unix.Signal) error {
	if err := n.end(sig); err != nil {
		return err
	}
	return n.StartDaemon(ctx)
}

// Change ends berthd and starts the one of another directory of programs.
func (n *Node) Change(ctx context.Context, bin string) error {
	if err := n.StopDaemon(); err != nil {
		return err
	}
	n.opts.Bin = bin
	return n.StartDaemon(ctx)
}

// Log is everything that berthd has written so far, and what its berth-shim has.
func (n *Node) Log() string {
	data, err := os.ReadFile(n.logFile())
	if err != nil {
		return err.Error()
	}
	if said, err := os.ReadFile(filepath.Join(n.Config.State, "shim", "shim.log")); err == nil && len(said) > 0 {
		data = fmt.Appendf(data, "berth-shim:\n%s", said)
	}
	return string(data)
}

// LogTail is the end of Log, for errors.
func (n *Node) LogTail() string {
	const lines = 40
	all := strings.Split(strings.TrimSpace(n.Log()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Berth runs the command line against this node and returns what it wrote to its standard output.
func (n *Node) Berth(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, n.Program("berth"), append([]string{"--endpoint", n.Config.Listen}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("run berth %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
