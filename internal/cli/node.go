package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	berthv1 "github.com/berth-runtime/berth/api/berth/v1"
	"github.com/berth-runtime/berth/internal/config"
)

const (
	// dialTimeout bounds the connection to a socket of this machine.
	dialTimeout = 3 * time.Second
	// maxMessage bounds a message of the runtime; it is what kubelet allows.
	maxMessage = 16 << 20
)

// Deadlines of what takes longer than a question. They follow kubelet's.
const (
	podTimeout    = 4 * time.Minute
	changeTimeout = 2 * time.Minute
)

// node is a connection to a runtime.
type node struct {
	runtimeapi.RuntimeServiceClient

	images   runtimeapi.ImageServiceClient
	berth    berthv1.NodeClient
	conn     *grpc.ClientConn
	endpoint string
	timeout  time.Duration
}

// connectError is a socket that cannot be connected to.
type connectError struct {
	endpoint string
	err      error
}

func (e *connectError) Error() string { return fmt.Sprintf("connect to %s: %v", e.endpoint, e.err) }
func (e *connectError) Unwrap() error { return e.err }

// connect opens the endpoint. The socket is tried at once, so that a daemon
// that is not there is reported as such and not as a call that failed.
func (a *app) connect(ctx context.Context) (*node, error) {
	endpoint, err := a.findEndpoint()
	if err != nil {
		return nil, err
	}
	path, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return nil, fmt.Errorf("endpoint %q: not a unix socket; want for example %s", endpoint, config.DefaultListen)
	}
	d := net.Dialer{Timeout: dialTimeout}
	probe, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, &connectError{endpoint: endpoint, err: socketError(err)}
	}
	if err := probe.Close(); err != nil {
		return nil, &connectError{endpoint: endpoint, err: err}
	}
	conn, err := grpc.NewClient("passthrough:///berth",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", path)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, &connectError{endpoint: endpoint, err: err}
	}
	return &node{
		RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(conn),
		images:               runtimeapi.NewImageServiceClient(conn),
		berth:                berthv1.NewNodeClient(conn),
		conn:                 conn, endpoint: endpoint, timeout: a.timeout,
	}, nil
}

// findEndpoint returns where to connect to. The configuration file of the
// daemon is only asked if nothing else says so, and need not be readable.
func (a *app) findEndpoint() (string, error) {
	endpoint := a.endpoint
	if endpoint == "" {
		endpoint = os.Getenv(endpointVariable)
	}
	if endpoint == "" {
		cfg, err := config.Load(a.configFile, a.configFile != config.DefaultFile)
		if err != nil && a.configFile != config.DefaultFile {
			return "", err
		}
		if err != nil {
			return config.DefaultListen, nil //nolint:nilerr // people without access to the file may have it to the socket
		}
		endpoint = cfg.Listen
	}
	if strings.HasPrefix(endpoint, "/") {
		endpoint = "unix://" + endpoint
	}
	return endpoint, nil
}

// with runs one command on a connection.
func (a *app) with(ctx context.Context, do func(context.Context, *node) error) error {
	n, err := a.connect(ctx)
	if err != nil {
		return err
	}
	err = do(ctx, n)
	if closeErr := n.conn.Close(); err == nil {
		err = closeErr
	}
	return err
}

// ask is the context of a simple question.
func (n *node) ask(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, n.timeout)
}
