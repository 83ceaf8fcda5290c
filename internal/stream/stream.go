// Package stream serves the sessions that the CRI hands out as URLs: exec,
// attach and port-forward.
//
//	kubelet ──gRPC──▶ cri ──▶ Server.Exec      validates, answers a one-use URL
//	kubelet ──HTTP──▶ Server.ServeHTTP         takes the ticket of the URL
//	                    │ session              context, hijacked connection
//	                    ▼
//	                  cri-streaming            SPDY or WebSocket to plain streams; what it does
//	                    │                      not speak, the fifth version of the WebSocket protocol
//	                    │                      and SPDY through a WebSocket, is in this package
//	                    ▼
//	                  Runtime.Exec / Attach    or a connection into the pod
//
// A session ends when its work is done, when its client goes away, when its
// owner (the container or sandbox) goes, or when the server shuts down;
// whichever comes first ends all the others' goroutines too. The token in the
// URL is the only secret, so the server belongs on a loopback address, or needs
// TLS (certificate.go) with certificates of its clients.
//
// Locks: sessions.mu and tickets.mu are leaves; neither is held across I/O.
// certificates.mu is held while the files are looked at.
package stream

import (
	"context"
	"io"
)

// The kinds of sessions, as they appear in URLs, log lines and metrics.
const (
	kindExec        = "exec"
	kindAttach      = "attach"
	kindPortForward = "portforward"
)

// Size is the size of a terminal in character cells.
type Size struct {
	Width, Height uint16
}

// Streams are the ends of a session that a process is connected to. What was
// not asked for is nil.
type Streams struct {
	// Stdin ends with EOF when the client has no more input.
	Stdin io.Reader
	// Stdout and Stderr fail once the client has gone.
	Stdout, Stderr io.Writer
	// Resize delivers the sizes of the client's terminal. It is closed when
	// there will be no more, which may be before the session ends.
	Resize <-chan Size
	// Terminal says that the process has a terminal; Stderr is nil then.
	Terminal bool
}

// Pipes says which ends a client asked for.
type Pipes struct {
	Stdin, Stdout, Stderr, Terminal bool
}

// Runtime runs what sessions are about.
type Runtime interface {
	// Exec runs cmd in a container until it ends and answers its exit code.
	// When ctx ends the command is killed.
	Exec(ctx context.Context, containerID string, cmd []string, s Streams) (exitCode int, err error)
	// Attach connects s to the container's own process until either ends.
	Attach(ctx context.Context, containerID string, s Streams) error
	// NetNS answers where the network namespace of a sandbox is pinned, ""
	// if the sandbox uses that of the host.
	NetNS(sandboxID string) (path string, err error)
}
