package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/berth-runtime/berth/internal/cli/logfile"
	"github.com/berth-runtime/berth/internal/cli/session"
)

// endPatience is how long the news of a container's end may take to come after
// its streams have ended.
const endPatience = 3 * time.Second

// terminal attaches our terminal. What the container wrote before that is in
// its log; sizing the terminal afterwards makes shells show their prompt again.
func (r *run) terminal(ctx context.Context, ended <-chan struct{}) error {
	connected := time.Time{}
	var replayErr error
	seam := &seam{out: r.Out, missing: func() ([]byte, error) { return r.logged(ctx, connected, time.Time{}) }}
	s := session.Streams{Stdout: seam, Connected: func() {
		connected = time.Now()
		var before []byte
		if before, replayErr = r.logged(ctx, time.Time{}, connected); replayErr == nil {
			_, replayErr = r.Out.Write(before)
		}
	}}
	err := r.session(ctx, r.node.attachURL(r.container, r.o.sessionFlags), r.o.sessionFlags, s)
	switch {
	case errors.Is(err, session.ErrDetached):
		return errors.Join(err, replayErr)
	case err != nil && (seam.joined || !endsSoon(ended)):
		return &hintedError{
			err:  runtimeError("attach to container "+r.o.name, err),
			next: "The container goes on. Come back with: berth attach " + r.o.name,
		}
	case seam.joined:
		return replayErr
	}
	// It was over before we were attached, so all of it is in the log.
	<-ended
	rest, err := r.logged(ctx, connected, time.Time{})
	if err != nil {
		return err
	}
	_, err = r.Out.Write(rest)
	return errors.Join(err, replayErr)
}

// endsSoon says whether a container that could not be attached to is about to
// be reported as ended.
func endsSoon(ended <-chan struct{}) bool {
	timer := time.NewTimer(endPatience)
	defer timer.Stop()
	select {
	case <-ended:
		return true
	case <-timer.C:
		return false
	}
}

// logged returns what the log holds of the time after one moment and until
// another; a zero one means from the beginning, or to the end.
func (r *run) logged(ctx context.Context, after, until time.Time) ([]byte, error) {
	var out []byte
	err := logfile.Read(ctx, r.logPath, logfile.Options{Tail: -1}, func(l logfile.Line) error {
		if !l.Time.After(after) || !until.IsZero() && l.Time.After(until) {
			return nil
		}
		out = append(out, l.Text...)
		if !l.Partial {
			out = append(out, '\n') // its "\r" is in the log
		}
		return nil
	})
	return out, err
}

// seam is where the output of a session continues that of the log. Between the
// connection and the moment from which the runtime sends, a container may have
// written more; that is put in front of the first output.
type seam struct {
	out     io.Writer
	missing func() ([]byte, error)
	joined  bool
}

// Write passes output on.
func (s *seam) Write(p []byte) (int, error) {
	if !s.joined {
		s.joined = true
		missing, err := s.missing()
		if err != nil {
			return 0, err
		}
		if _, err := s.out.Write(missing[:overlap(missing, p)]); err != nil {
			return 0, err
		}
	}
	return s.out.Write(p)
}

// overlap returns where in missing the output p begins, its length if p comes
// after all of it. Where that is not certain, the last place is taken: rather
// something twice than not at all.
func overlap(missing, p []byte) int {
	for i := range slices.Backward(missing) {
		rest := missing[i:]
		if bytes.HasPrefix(p, rest) || bytes.HasPrefix(rest, p) {
			return i
		}
	}
	return len(missing)
}
