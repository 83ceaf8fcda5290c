package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/term"

	berthv1 "github.com/berth-runtime/berth/api/berth/v1"
)

const (
	// redrawInterval is how often a bar is redrawn while there is no progress.
	redrawInterval = 200 * time.Millisecond
	// barWidth is the number of characters of a bar.
	barWidth = 30
	// maxBars is how many layers have a bar of their own; more scroll the screen.
	maxBars = 16
	// plainInterval is how often progress is printed where there is no terminal.
	plainInterval = 5 * time.Second
	defaultWidth  = 80
)

// progress shows how far a pull has come: as bars on a terminal, elsewhere as
// a line now and then, so that a log of it stays readable.
type progress struct {
	ref   string
	out   io.Writer
	fd    int
	tty   bool
	now   func() time.Time
	start time.Time

	last  *berthv1.WatchPullResponse
	drawn int // lines on the screen

	saidStage string
	saidAt    time.Time
}

func (a *app) newProgress(ref string) *progress {
	fd, tty := terminal(a.Err)
	return &progress{ref: ref, out: a.Err, fd: fd, tty: tty, now: a.now, start: a.now()}
}

// run shows progress until ctx ends. A runtime that does not tell how far it is
// gets a clock instead; trouble with the bar is never trouble with the pull.
func (p *progress) run(ctx context.Context, client berthv1.NodeClient) {
	updates := make(chan *berthv1.WatchPullResponse)
	go func() {
		defer close(updates)
		p.receive(ctx, client, updates)
	}()
	tick := time.NewTicker(redrawInterval)
	defer tick.Stop()
	for {
		select {
		case u, ok := <-updates:
			if !ok {
				updates = nil // the stream has ended; the pull is about to
				continue
			}
			p.last = u
			p.show()
		case <-tick.C:
			p.show()
		case <-ctx.Done():
			if updates != nil {
				for u := range updates { // ends with ctx
					p.last = u
				}
			}
			p.finish()
			return
		}
	}
}

// receive passes on what the runtime tells. Why it stops telling is of no
// interest: what becomes of the pull is said by the pull.
func (p *progress) receive(ctx context.Context, client berthv1.NodeClient, updates chan<- *berthv1.WatchPullResponse) {
	stream, err := client.WatchPull(ctx, &berthv1.WatchPullRequest{Ref: p.ref})
	for err == nil {
		var u *berthv1.WatchPullResponse
		if u, err = stream.Recv(); err == nil {
			updates <- u
		}
	}
}

func (p *progress) show() {
	if p.tty {
		p.redraw(p.lines())
		return
	}
	stage := p.stage()
	if stage == p.saidStage && p.now().Sub(p.saidAt) < plainInterval {
		return
	}
	p.saidStage, p.saidAt = stage, p.now()
	fmt.Fprintln(p.out, p.summary())
}

// finish leaves the screen as if no bar had been there.
func (p *progress) finish() {
	if p.tty {
		p.redraw(nil)
	}
}

func (p *progress) stage() string {
	if s := p.last.GetStage(); s != "" {
		return s
	}
	return "pulling"
}

// summary is the pull in one line.
func (p *progress) summary() string {
	var done, total uint64
	for _, l := range p.last.GetLayers() {
		if l.State == berthv1.LayerState_LAYER_STATE_EXISTS {
			continue
		}
		done += uint64(max(0, l.Done))
		total += uint64(max(0, l.Total))
	}
	text := fmt.Sprintf("%s: %s", p.ref, p.stage())
	elapsed := p.now().Sub(p.start).Truncate(time.Second)
	if total > 0 {
		text += fmt.Sprintf(", %s of %s", size(done), size(total))
	}
	if total > 0 && elapsed > 0 {
		text += fmt.Sprintf(" (%s/s)", size(done/uint64(elapsed/time.Second)))
	}
	return text + ", " + elapsed.String()
}

// lines are the bars: one for each layer that is not done, and the summary.
func (p *progress) lines() []string {
	var out []string
	rest := 0
	for _, l := range p.last.GetLayers() {
		if l.State == berthv1.LayerState_LAYER_STATE_DONE || l.State == berthv1.LayerState_LAYER_STATE_EXISTS {
			continue
		}
		if len(out) == maxBars {
			rest++
			continue
		}
		out = append(out, layerLine(l))
	}
	if rest > 0 {
		out = append(out, fmt.Sprintf("  and %d more layers", rest))
	}
	return append(out, p.summary())
}

func layerLine(l *berthv1.LayerProgress) string {
	filled := 0
	if l.Total > 0 {
		filled = int(min(l.Done, l.Total) * barWidth / l.Total)
	}
	filled = max(0, filled)
	bar := strings.Repeat("━", filled) + strings.Repeat("─", barWidth-filled)
	return fmt.Sprintf("  %s  %s  %9s / %-9s %s",
		short(l.Digest), bar, size(uint64(max(0, l.Done))), size(uint64(max(0, l.Total))), layerWord(l.State))
}

// redraw replaces what was drawn before. Lines are cut to the width of the
// terminal: one that wraps could not be taken back.
func (p *progress) redraw(lines []string) {
	width := defaultWidth
	if w, _, err := term.GetSize(p.fd); err == nil && w > 0 {
		width = w
	}
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	b.WriteString("\r\x1b[J")
	for _, line := range lines {
		runes := []rune(oneLine(line))
		if len(runes) >= width {
			runes = runes[:width-1]
		}
		b.WriteString(string(runes) + "\n")
	}
	p.drawn = len(lines)
	if _, err := io.WriteString(p.out, b.String()); err != nil {
		p.tty, p.out = false, io.Discard // a screen that is gone needs no bar
	}
}
