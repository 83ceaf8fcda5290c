package cri

import (
	"context"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// A call is given up shortly before its client gives up, or the client
	// would never see the answer that names the stage which took so long:
	// 1/replyShare of its time, at most replyMargin.
	replyShare  = 20
	replyMargin = 250 * time.Millisecond
)

// quiet are the methods that clients call all the time and that change
// nothing; their successes are logged for debugging only.
var quiet = map[string]bool{
	"Version": true, "Status": true, "RuntimeConfig": true,
	"PodSandboxStatus": true, "ListPodSandbox": true, "StreamPodSandboxes": true,
	"ContainerStatus": true, "ListContainers": true, "StreamContainers": true,
	"ContainerStats": true, "ListContainerStats": true, "StreamContainerStats": true,
	"PodSandboxStats": true, "ListPodSandboxStats": true, "StreamPodSandboxStats": true,
	"ListMetricDescriptors": true, "ListPodSandboxMetrics": true, "StreamPodSandboxMetrics": true,
	"ListImages": true, "StreamImages": true, "ImageStatus": true, "ImageFsInfo": true,
	"ExecSync": true, "GetContainerEvents": true, "WatchPull": true,
}

func (s *Server) interceptUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	ctx, cancel := withReplyMargin(ctx)
	defer cancel()
	err = s.observe(ctx, info.FullMethod, req, func() (err error) {
		resp, err = handler(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *Server) interceptStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return s.observe(ss.Context(), info.FullMethod, nil, func() error { return handler(srv, ss) })
}

// observe performs one call: it counts and logs it, gives its error a code and
// names what it was about, and turns a panic into an internal error.
func (s *Server) observe(ctx context.Context, fullMethod string, req any, call func() error) error {
	method := path.Base(fullMethod)
	begun := time.Now()
	done := s.Meter.Call(method)
	about := subjectOf(req)
	if !quiet[method] {
		// Before the call: a removal leaves nothing to look up.
		about.lookUp(s.Engine)
	}

	err := statusOf(s.guard(ctx, method, call))
	if err != nil {
		about.lookUp(s.Engine)
		err = about.explain(err)
	}
	code := status.Code(err)
	done(code.String())
	s.logCall(ctx, method, about, time.Since(begun), err)
	return err
}

// guard performs a call and catches its panic: one broken request must not
// take the daemon from all the others.
func (s *Server) guard(ctx context.Context, method string, call func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.Meter.Panicked(method)
			s.Log.ErrorContext(ctx, "panic", "method", method, "panic", p, "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s: internal error, the daemon's log has the details: %v", method, p)
		}
	}()
	return call()
}

// logCall writes the line of one call. Requests are not logged: they hold
// secrets of registries and of environments.
func (s *Server) logCall(ctx context.Context, method string, about *subject, took time.Duration, err error) {
	code := status.Code(err)
	level := s.levelOf(method, code)
	if !s.Log.Enabled(ctx, level) {
		return
	}
	attributes := append(about.attributes(), slog.String("code", code.String()), slog.Duration("took", took))
	if err != nil {
		attributes = append(attributes, slog.String("error", status.Convert(err).Message()))
	}
	s.Log.LogAttrs(ctx, level, method, attributes...)
}

// levelOf says how important a call's line is: what clients do all the time is
// for debugging, and an error that says nothing of its kind is for alarm. A pull
// says nothing of its kind when the registry is at fault, see pullError.
func (s *Server) levelOf(method string, code codes.Code) slog.Level {
	switch code {
	case codes.OK, codes.NotFound, codes.Unimplemented, codes.Canceled:
		if quiet[method] {
			return slog.LevelDebug
		}
		return slog.LevelInfo
	case codes.Unavailable:
		if s.isStopping() {
			return slog.LevelInfo
		}
	case codes.Unknown, codes.Internal, codes.DataLoss:
		if method != "PullImage" || code != codes.Unknown {
			return slog.LevelError
		}
	default:
	}
	return slog.LevelWarn
}

// withReplyMargin moves the deadline of a call forward so that there is time
// left to answer.
func withReplyMargin(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	margin := min(time.Until(deadline)/replyShare, replyMargin)
	return context.WithDeadline(ctx, deadline.Add(-margin))
}

// containsAny reports whether text has one of words, leaving out empty ones.
func containsAny(text string, words ...string) bool {
	for _, w := range words {
		if w != "" && strings.Contains(text, w) {
			return true
		}
	}
	return false
}
