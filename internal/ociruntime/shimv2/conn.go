package shimv2

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/berth-runtime/berth/internal/ociruntime/shimv2/task"
)

// States of a task, as Status tells them.
const (
	// StateCreated is a container whose process waits for Start.
	StateCreated = 1
	// StateRunning is a container that was started.
	StateRunning = 2
	// StateStopped is one whose process has ended.
	StateStopped = 3
)

// namespaceHeader is where shims look for the namespace of a call.
const namespaceHeader = "containerd-namespace-ttrpc"

// ErrGone tells that the shim does not serve any more.
var ErrGone = errors.New("the shim-v2 process does not answer any more")

// Conn is a connection to a shim. Its methods may be called by many goroutines.
type Conn struct {
	client  *ttrpc.Client
	service string
	gone    chan struct{}
}

// Dial connects to a shim that has started. It is ErrGone when no shim listens there.
func Dial(ctx context.Context, e Endpoint) (*Conn, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", e.Socket())
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return nil, fmt.Errorf("connect to shim: %w: %w", err, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to shim: %w", err)
	}
	gone := make(chan struct{})
	return &Conn{
		client: ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(gone) })), gone: gone,
		service: fmt.Sprintf("containerd.task.v%d.Task", e.Version),
	}, nil
}

// Close ends the connection; the shim lives on.
func (c *Conn) Close() error { return c.client.Close() }

// Gone is closed when the connection has ended, by Close or by the shim.
func (c *Conn) Gone() <-chan struct{} { return c.gone }

// call runs one method.
func (c *Conn) call(ctx context.Context, method string, req, resp proto.Message) error {
	ctx = ttrpc.WithMetadata(ctx, ttrpc.MD{namespaceHeader: {Namespace}})
	err := c.client.Call(ctx, c.service, method, req, resp)
	if err == nil {
		return nil
	}
	if errors.Is(err, ttrpc.ErrClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("%s: %w", method, ErrGone)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s did not finish in time: %w", method, ctx.Err())
	}
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %w", method, err)
	}
	var kind error = errdefs.ErrUnknown
	switch {
	case st.Code() == codes.NotFound || strings.Contains(st.Message(), "process already finished"):
		kind = errdefs.ErrNotFound
	case st.Code() == codes.AlreadyExists:
		kind = errdefs.ErrAlreadyExists
	case st.Code() == codes.FailedPrecondition:
		kind = errdefs.ErrFailedPrecondition
	case st.Code() == codes.InvalidArgument:
		kind = errdefs.ErrInvalidArgument
	case st.Code() == codes.Unimplemented:
		kind = errdefs.ErrNotImplemented
	}
	return &CallError{Method: method, Message: st.Message(), kind: kind}
}

// CallError is a shim's refusal.
type CallError struct {
	// Method is what was called, Message the shim's own words.
	Method, Message string
	kind            error
}

// Error gives the shim's own words.
func (e *CallError) Error() string { return e.Method + ": " + e.Message }

// Unwrap returns the kind of the error.
func (e *CallError) Unwrap() error { return e.kind }

// Create prepares the container of a bundle; its process waits for Start.
func (c *Conn) Create(ctx context.Context, req *task.CreateRequest) (pid int, err error) {
	var resp task.Started
	err = c.call(ctx, "Create", req, &resp)
	return int(resp.Pid), err
}

// Start lets a container go, or an exec.
func (c *Conn) Start(ctx context.Context, id, execID string) (pid int, err error) {
	var resp task.Started
	err = c.call(ctx, "Start", &task.Process{Id: id, ExecId: execID}, &resp)
	return int(resp.Pid), err
}

// Exec prepares a process in a container; it waits for Start. Process is its JSON.
func (c *Conn) Exec(ctx context.Context, req *task.ExecRequest, process []byte) error {
	req.Spec = specAny("Process", process)
	return c.call(ctx, "Exec", req, &task.Empty{})
}

// Wait returns how a container or an exec ended, also when that was long ago.
func (c *Conn) Wait(ctx context.Context, id, execID string) (code int, at time.Time, err error) {
	var resp task.WaitResponse
	if err := c.call(ctx, "Wait", &task.Process{Id: id, ExecId: execID}, &resp); err != nil {
		return 0, time.Time{}, err
	}
	at = time.Now()
	if resp.ExitedAt.GetSeconds() > 0 {
		at = time.Unix(resp.ExitedAt.Seconds, int64(resp.ExitedAt.Nanos))
	}
	return int(resp.ExitStatus), at, nil
}

// State returns one of the states above and the process of a container or an exec.
func (c *Conn) State(ctx context.Context, id, execID string) (state, pid int, err error) {
	var resp task.StateResponse
	err = c.call(ctx, "State", &task.Process{Id: id, ExecId: execID}, &resp)
	return int(resp.Status), int(resp.Pid), err
}

// Kill sends a signal to a container, to all of its processes, or to an exec.
func (c *Conn) Kill(ctx context.Context, id, execID string, sig syscall.Signal, all bool) error {
	return c.call(ctx, "Kill", &task.KillRequest{Id: id, ExecId: execID, Signal: uint32(sig), All: all}, &task.Empty{})
}

// Delete forgets a container or an exec that has ended. All that it wrote is in its FIFOs then.
func (c *Conn) Delete(ctx context.Context, id, execID string) error {
	return c.call(ctx, "Delete", &task.Process{Id: id, ExecId: execID}, &task.Empty{})
}

// Update changes limits; resources is JSON.
func (c *Conn) Update(ctx context.Context, id string, resources []byte) error {
	return c.call(ctx, "Update", &task.UpdateRequest{Id: id, Resources: specAny("LinuxResources", resources)}, &task.Empty{})
}

// Resize sets the size of a terminal.
func (c *Conn) Resize(ctx context.Context, id, execID string, columns, rows uint16) error {
	return c.call(ctx, "ResizePty", &task.ResizeRequest{Id: id, ExecId: execID, Width: uint32(columns), Height: uint32(rows)}, &task.Empty{})
}

// CloseStdin says that no more input comes.
func (c *Conn) CloseStdin(ctx context.Context, id, execID string) error {
	return c.call(ctx, "CloseIO", &task.CloseIORequest{Id: id, ExecId: execID, Stdin: true}, &task.Empty{})
}

// PID returns the process of the shim.
func (c *Conn) PID(ctx context.Context, id string) (int, error) {
	var resp task.ConnectResponse
	err := c.call(ctx, "Connect", &task.Process{Id: id}, &resp)
	return int(resp.ShimPid), err
}

// Shutdown ends the shim once it has no container any more.
func (c *Conn) Shutdown(ctx context.Context, id string) error {
	err := c.call(ctx, "Shutdown", &task.ShutdownRequest{Id: id}, &task.Empty{})
	if errors.Is(err, ErrGone) {
		return nil // it was so quick that it did not answer
	}
	return err
}

// DropEvents has a server accept the events of shims. What counts, Wait tells.
func DropEvents(server *ttrpc.Server) {
	server.Register("containerd.services.events.ttrpc.v1.Events", map[string]ttrpc.Method{
		"Forward": func(_ context.Context, unmarshal func(any) error) (any, error) {
			return &task.Empty{}, unmarshal(&task.Empty{})
		},
	})
}
