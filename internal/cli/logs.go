package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cli/logfile"
)

func (a *app) logsCommand() *cobra.Command {
	var follow, stamps, previous bool
	var tail int
	var since string
	cmd := &cobra.Command{
		Use:   "logs CONTAINER",
		Short: "Print the log of a container",
		Args:  takes(cobra.ExactArgs(1), "the name or ID of one container"),
		RunE: func(cmd *cobra.Command, words []string) error {
			if tail < -1 {
				return &usageError{cmd: cmd, err: fmt.Errorf("--tail %d: want a number of lines or -1 for all", tail)}
			}
			from, err := parseSince(since, a.now())
			if err != nil {
				return &usageError{cmd: cmd, err: err}
			}
			return a.with(cmd.Context(), func(ctx context.Context, n *node) error {
				c, err := n.inventory(ctx)
				if err != nil {
					return fmt.Errorf("list containers: %w", err)
				}
				container, err := c.findContainer(words[0])
				if err == nil && previous {
					container, err = c.previous(container)
				}
				if err != nil {
					return err
				}
				o := logfile.Options{Tail: tail, Since: from}
				return a.logs(ctx, n, container.Id, o, follow, stamps)
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "follow the log until the container exits")
	cmd.Flags().IntVarP(&tail, "tail", "n", -1, "start with the last `N` lines; -1 means all")
	cmd.Flags().BoolVarP(&previous, "previous", "p", false, "print the log of the previous instance")
	cmd.Flags().StringVar(&since, "since", "", "start at a `TIME` such as 2026-01-31T12:00:00Z, or a duration ago such as 10m")
	cmd.Flags().BoolVarP(&stamps, "timestamps", "t", false, "show the timestamp of each line")
	return cmd
}

func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since %q: want a duration such as 10m, or a time such as 2026-01-31T12:00:00Z", text)
	}
	return t, nil
}

func (a *app) logs(ctx context.Context, n *node, id string, o logfile.Options, follow, stamps bool) error {
	st, err := n.containerStatus(ctx, id)
	if err != nil {
		return fmt.Errorf("read status of container %s: %w", short(id), err)
	}
	if st.LogPath == "" {
		return fmt.Errorf("container %s has no log path", short(id))
	}
	running := st.State == runtimeapi.ContainerState_CONTAINER_RUNNING || st.State == runtimeapi.ContainerState_CONTAINER_CREATED
	printer := &linePrinter{out: a.Out, err: a.Err, stamps: stamps}
	if follow && running {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		watch := n.watchEnd(ctx, id)
		o.Ended = watch.ended
		err = logfile.Read(ctx, st.LogPath, o, printer.print)
		cancel()
		_, _ = watch.wait() // only ended; how the container ended is not asked
	} else {
		err = logfile.Read(ctx, st.LogPath, o, printer.print)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &hintedError{err: fmt.Errorf("the log %s does not exist", st.LogPath), next: "The log file was deleted; output is lost until it is reopened, for example when kubelet rotates it."}
	case errors.Is(err, fs.ErrPermission):
		return &hintedError{err: err, next: "Logs belong to root. Try again with: sudo berth …"}
	case errors.Is(err, context.Canceled):
		return nil // Ctrl-C is how one stops following
	}
	return err
}

// linePrinter shows records of a log as the container wrote them.
type linePrinter struct {
	out, err io.Writer
	stamps   bool
	// open says per stream that the line so far has no end yet.
	open [2]bool
	buf  []byte
}

func (p *linePrinter) print(l logfile.Line) error {
	w, stream := p.out, 0
	if l.Stderr {
		w, stream = p.err, 1
	}
	p.buf = p.buf[:0]
	if p.stamps && !p.open[stream] && !l.Time.IsZero() {
		p.buf = l.Time.Local().AppendFormat(p.buf, "2006-01-02T15:04:05.000000Z07:00 ")
	}
	p.buf = append(p.buf, l.Text...)
	p.open[stream] = l.Partial
	if !l.Partial {
		p.buf = append(p.buf, '\n')
	}
	_, err := w.Write(p.buf)
	return err
}

func (n *node) containerStatus(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	ctx, cancel := n.ask(ctx)
	defer cancel()
	resp, err := n.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return nil, err
	}
	return resp.Status, nil
}
