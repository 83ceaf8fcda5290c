package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// channels are the channels of a WebSocket session, by their numbers. The fifth
// version of the protocol adds to the fourth, which the library speaks, that a
// client can close its input and go on reading.
func (p Pipes) channels() []wsstream.ChannelType {
	channels := []wsstream.ChannelType{
		remotecommand.StreamStdIn:  wsstream.IgnoreChannel,
		remotecommand.StreamStdOut: wsstream.IgnoreChannel,
		remotecommand.StreamStdErr: wsstream.IgnoreChannel,
		remotecommand.StreamErr:    wsstream.WriteChannel,
		remotecommand.StreamResize: wsstream.ReadChannel,
	}
	if p.Stdin {
		channels[remotecommand.StreamStdIn] = wsstream.ReadChannel
	}
	if p.Stdout {
		channels[remotecommand.StreamStdOut] = wsstream.WriteChannel
	}
	if p.Stderr {
		channels[remotecommand.StreamStdErr] = wsstream.WriteChannel
	}
	return channels
}

// greeter is the channel that announces to the client, with an empty message,
// that the session has begun.
func (p Pipes) greeter() int {
	switch {
	case p.Stdout:
		return remotecommand.StreamStdOut
	case p.Stderr:
		return remotecommand.StreamStdErr
	default:
		return remotecommand.StreamErr
	}
}

// serveChannels serves an exec or attach session over the fifth version of the
// WebSocket protocol.
func (e *executor) serveChannels(w http.ResponseWriter, r *http.Request, t ticket) error {
	ctx := r.Context()
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: t.pipes.channels()},
	})
	_, channels, err := conn.Open(w, r)
	if err != nil {
		return fmt.Errorf("accept the WebSocket: %w", err)
	}
	defer func() { _ = conn.Close() }() // The client has the outcome, or is gone.
	if _, err := channels[t.pipes.greeter()].Write(nil); err != nil {
		return fmt.Errorf("greet the client: %w", err)
	}
	if !e.session.enter() {
		return context.Cause(ctx)
	}
	resized := make(chan remotecommand.TerminalSize)
	go func() {
		defer e.session.work.Done()
		readSizes(ctx, channels[remotecommand.StreamResize], resized)
	}()
	err = e.work(ctx, t, channels, resized)
	// If that fails the connection is broken, which the session knows.
	_ = json.NewEncoder(channels[remotecommand.StreamErr]).Encode(outcomeOf(t.kind, err))
	return nil
}

// work does what the session is for.
func (e *executor) work(ctx context.Context, t ticket, channels []io.ReadWriteCloser, resized <-chan remotecommand.TerminalSize) error {
	in, out, err := channels[remotecommand.StreamStdIn], channels[remotecommand.StreamStdOut], channels[remotecommand.StreamStdErr]
	if t.kind == kindExec {
		return e.ExecInContainer(ctx, "", "", t.owner, t.command, in, out, err, t.pipes.Terminal, resized, 0)
	}
	return e.AttachContainer(ctx, "", "", t.owner, in, out, err, t.pipes.Terminal, resized)
}

// readSizes reads the sizes of the client's terminal until it sends no more.
func readSizes(ctx context.Context, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	for decoder := json.NewDecoder(from); ; {
		var size remotecommand.TerminalSize
		if decoder.Decode(&size) != nil {
			return // The end, or nothing that can be read any further.
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// outcome is how a session went: the part of a Kubernetes Status that clients
// of exec and attach look at.
type outcome struct {
	Status  string          `json:"status"`
	Message string          `json:"message,omitempty"`
	Reason  string          `json:"reason,omitempty"`
	Code    int             `json:"code,omitempty"`
	Details *outcomeDetails `json:"details,omitempty"`
}

type outcomeDetails struct {
	Causes []outcomeCause `json:"causes"`
}

type outcomeCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// outcomeOf says it as the library does for the older versions.
func outcomeOf(kind string, failure error) outcome {
	if failure == nil {
		return outcome{Status: "Success"}
	}
	if exit, ok := errors.AsType[utilexec.ExitError](failure); ok && exit.Exited() {
		return outcome{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
			Details: &outcomeDetails{Causes: []outcomeCause{{
				Reason: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.ExitStatus()),
			}}},
		}
	}
	return outcome{
		Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError,
		Message: fmt.Sprintf("Internal error occurred: %s in container: %v", kind, failure),
	}
}
