package cri

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/spec"
	"github.com/berth-runtime/berth/internal/stream"
)

// ExecSync runs a command in a container and answers its output and exit code.
// A command that ends with another code than zero is no error.
func (s *runtimeService) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if req.GetContainerId() == "" {
		return nil, invalid("container_id", "missing")
	}
	if err := checkCommand(req.GetCmd()); err != nil {
		return nil, err
	}
	timeout, err := seconds("timeout", req.GetTimeout())
	if err != nil {
		return nil, err
	}
	result, err := s.Engine.ExecSync(ctx, req.GetContainerId(), req.GetCmd(), timeout)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: result.Stdout, Stderr: result.Stderr, ExitCode: result.ExitCode}, nil
}

// Exec answers the URL at which a command can be run in a running container.
func (s *runtimeService) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	view, err := s.running(req.GetContainerId())
	if err == nil {
		err = checkCommand(req.GetCmd())
	}
	if err != nil {
		return nil, err
	}
	url, err := s.Sessions.Exec(view.ID, req.GetCmd(), stream.Pipes{
		Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr(), Terminal: req.GetTty(),
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

// Attach answers the URL at which a running container's own streams are. A terminal or an input that the container
// was created without is not refused: the session has none.
func (s *runtimeService) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	view, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	url, err := s.Sessions.Attach(view.ID, stream.Pipes{
		Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr(), Terminal: req.GetTty(),
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

// PortForward answers the URL at which ports inside a sandbox can be reached.
func (s *runtimeService) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	view, err := s.ready(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	url, err := s.Sessions.PortForward(view.ID, req.GetPort())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}

// checkCommand refuses a command that no process can be given.
func checkCommand(cmd []string) error {
	if len(cmd) == 0 {
		return invalid("cmd", "missing, want at least the program to run")
	}
	if cmd[0] == "" {
		return invalid("cmd[0]", "empty, want the program to run")
	}
	if err := spec.CheckCommand("cmd", cmd); err != nil {
		return err
	}
	for i, word := range cmd {
		if strings.ContainsRune(word, 0) {
			return invalid(fmt.Sprintf("cmd[%d]", i), "contains a NUL byte")
		}
	}
	return nil
}

// running answers the container if it is running now.
func (s *runtimeService) running(id string) (*pod.Container, error) {
	if id == "" {
		return nil, invalid("container_id", "missing")
	}
	view, err := s.Engine.Container(id)
	if err != nil {
		return nil, err
	}
	if view.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, fmt.Errorf("container %s is in state %s, want %s: %w",
			view.ID, view.State, runtimeapi.ContainerState_CONTAINER_RUNNING, errdefs.ErrFailedPrecondition)
	}
	return view, nil
}

// ready answers the sandbox if it is ready now.
func (s *runtimeService) ready(id string) (*pod.Sandbox, error) {
	if id == "" {
		return nil, invalid("pod_sandbox_id", "missing")
	}
	view, err := s.Engine.Sandbox(id)
	if err != nil {
		return nil, err
	}
	return view, wantReady(view)
}

func wantReady(view *pod.Sandbox) error {
	if view.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("pod sandbox %s is in state %s, want %s: %w",
			view.ID, view.State, runtimeapi.PodSandboxState_SANDBOX_READY, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// StreamRuntime lets the stream server run its sessions in the engine.
func StreamRuntime(e Engine) stream.Runtime {
	return sessions{e}
}

// sessions implements [stream.Runtime].
type sessions struct{ engine Engine }

// Exec implements [stream.Runtime].
func (s sessions) Exec(ctx context.Context, containerID string, cmd []string, streams stream.Streams) (int, error) {
	return s.engine.Exec(ctx, containerID, cmd, toEngine(ctx, streams))
}

// Attach implements [stream.Runtime].
func (s sessions) Attach(ctx context.Context, containerID string, streams stream.Streams) error {
	return s.engine.Attach(ctx, containerID, toEngine(ctx, streams))
}

// NetNS implements [stream.Runtime].
func (s sessions) NetNS(sandboxID string) (string, error) {
	view, err := s.engine.Sandbox(sandboxID)
	if err != nil {
		return "", err
	}
	return view.NetNS, wantReady(view)
}

// toEngine puts streams into the engine's words. What passes the sizes on ends
// with them or with ctx.
func toEngine(ctx context.Context, s stream.Streams) pod.Streams {
	streams := pod.Streams{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Terminal: s.Terminal}
	if s.Resize == nil {
		return streams
	}
	sizes := make(chan pod.Size)
	streams.Resize = sizes
	go func() {
		defer close(sizes)
		for size := range s.Resize {
			select {
			case sizes <- pod.Size(size):
			case <-ctx.Done():
				return
			}
		}
	}()
	return streams
}

// seconds reads a field that counts seconds; one that is too large for a duration
// as a duration is as good as no end.
func seconds(field string, n int64) (time.Duration, error) {
	if n < 0 {
		return 0, invalid(field, fmt.Sprintf("%d, want 0 or more seconds", n))
	}
	if n > math.MaxInt64/int64(time.Second) {
		return math.MaxInt64, nil
	}
	return time.Duration(n) * time.Second, nil
}
