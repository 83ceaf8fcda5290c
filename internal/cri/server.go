package cri

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	berthv1 "github.com/berth-runtime/berth/api/berth/v1"
	"github.com/berth-runtime/berth/internal/nri"
)

// maxRequestBytes is the largest request that is accepted, kubelet's own limit
// for what it receives. Replies are trimmed to fit, see reply.go.
const maxRequestBytes = 16 << 20

// Options are what a [Server] needs.
type Options struct {
	Engine   Engine
	Images   Images
	Sessions Sessions
	Meter    Meter
	Log      *slog.Logger
	// Version is that of the daemon, a semantic version.
	Version string
	// CgroupDriver is what kubelet has to use as well.
	CgroupDriver runtimeapi.CgroupDriver
	// Config is shown by a verbose Status; it is marshalled as JSON.
	Config any
	// Plugins says whether NRI plugins take part; nil is a node without NRI.
	Plugins func() nri.State
	// SawKubelet is called when a client shows itself to be a kubelet; it may be nil.
	SawKubelet func(sign string)
	// SetPodCIDR takes the pod range that kubelet announces; it may be nil.
	SetPodCIDR func(cidr string) error
	// CheckCRIU is nil if CRIU works here, and else says why not.
	CheckCRIU func(context.Context) error
}

// Server serves the CRI and Berth's own services.
type Server struct {
	Options

	grpc *grpc.Server
	// stopping ends the calls that otherwise last as long as their client.
	stopping chan struct{}
	stopOnce sync.Once
	// trimLogged is when a trimmed reply was last logged, by method.
	trimMu     sync.Mutex
	trimLogged map[string]time.Time
}

// New returns a server that has not begun to serve.
func New(o Options) *Server {
	s := &Server{Options: o, stopping: make(chan struct{}), trimLogged: map[string]time.Time{}}
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.ForceServerCodecV2(newReplyCodec(o.Log)),
		grpc.UnaryInterceptor(s.interceptUnary),
		grpc.StreamInterceptor(s.interceptStream),
	)
	runtimeapi.RegisterRuntimeServiceServer(s.grpc, &runtimeService{Server: s})
	runtimeapi.RegisterImageServiceServer(s.grpc, &imageService{Server: s})
	berthv1.RegisterNodeServer(s.grpc, &nodeService{Server: s})
	return s
}

// Serve answers calls on l until [Server.Shutdown]. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if s.SawKubelet != nil {
		l = clients{l, s.SawKubelet}
	}
	if err := s.grpc.Serve(l); err != nil {
		return fmt.Errorf("serve the CRI on %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown refuses new calls, ends the event streams and waits for the calls in
// flight. When ctx ends it cuts them. A nil error means that none was cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopOnce.Do(func() { close(s.stopping) })
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		s.grpc.GracefulStop()
	}()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		s.grpc.Stop()
		<-drained
		return fmt.Errorf("wait for the calls in flight: %w", ctx.Err())
	}
}

// isStopping reports whether Shutdown has begun.
func (s *Server) isStopping() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// runtimeService implements the runtime service of the CRI. What a later slice
// brings answers Unimplemented.
type runtimeService struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	*Server
}

// imageService implements the image service of the CRI.
type imageService struct {
	runtimeapi.UnimplementedImageServiceServer
	*Server
}

// nodeService implements what Berth offers beside the CRI.
type nodeService struct {
	berthv1.UnimplementedNodeServer
	*Server
}
