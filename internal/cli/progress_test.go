package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	berthv1 "github.com/berth-runtime/berth/api/berth/v1"
)

func layer(digit string, done, total int64, state berthv1.LayerState) *berthv1.LayerProgress {
	return &berthv1.LayerProgress{Digest: "sha256:" + strings.Repeat(digit, 64), Done: done, Total: total, State: state}
}

func TestProgressLines(t *testing.T) {
	p := &progress{ref: "a/b:1", start: epoch, now: func() time.Time { return epoch.Add(3 * time.Second) }}
	p.last = &berthv1.WatchPullResponse{Stage: "downloading", Layers: []*berthv1.LayerProgress{
		layer("1", 500, 500, berthv1.LayerState_LAYER_STATE_DONE),
		layer("2", 1_000_000, 2_000_000, berthv1.LayerState_LAYER_STATE_DOWNLOADING),
		layer("3", 0, 0, berthv1.LayerState_LAYER_STATE_WAITING),
		layer("4", 9, 4, berthv1.LayerState_LAYER_STATE_UNPACKING), // more than was announced
		layer("5", -1, 4, berthv1.LayerState_LAYER_STATE_UNSPECIFIED),
	}}
	want := []string{
		"  222222222222  " + strings.Repeat("━", 15) + strings.Repeat("─", 15) + "     1.0 MB / 2.0 MB    downloading",
		"  333333333333  " + strings.Repeat("─", 30) + "        0 B / 0 B       waiting",
		"  444444444444  " + strings.Repeat("━", 30) + "        9 B / 4 B       unpacking",
		"  555555555555  " + strings.Repeat("─", 30) + "        0 B / 4 B       ",
		"a/b:1: downloading, 1.0 MB of 2.0 MB (333.5 kB/s), 3s",
	}
	got := p.lines()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("lines are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Many layers do not scroll the screen, since what scrolled cannot be redrawn.
func TestProgressOfManyLayers(t *testing.T) {
	p := &progress{ref: "a", start: epoch, now: func() time.Time { return epoch }, last: &berthv1.WatchPullResponse{}}
	for range 100 {
		p.last.Layers = append(p.last.Layers, layer("1", 0, 1, berthv1.LayerState_LAYER_STATE_WAITING))
	}
	got := p.lines()
	if len(got) != maxBars+2 || !strings.Contains(got[maxBars], "and 84 more layers") {
		t.Errorf("%d lines, the last but one is %q", len(got), got[len(got)-2])
	}
}

// A bar that was drawn is taken back to the last line.
func TestProgressRedraw(t *testing.T) {
	var out bytes.Buffer
	p := &progress{ref: "a", out: &out, fd: -1, tty: true, start: epoch, now: func() time.Time { return epoch }}
	p.redraw([]string{"one", strings.Repeat("x", 500)})
	if longest := strings.Repeat("x", defaultWidth-1); !strings.Contains(out.String(), longest+"\n") || strings.Contains(out.String(), longest+"x") {
		t.Errorf("a line was not cut to the width of the terminal: %q", out.String())
	}
	out.Reset()
	p.finish()
	if out.String() != "\x1b[2A\r\x1b[J" {
		t.Errorf("finish writes %q, want two lines taken back", out.String())
	}
}

// Where there is no terminal, a line comes with each stage and then now and then.
func TestProgressPlain(t *testing.T) {
	var out bytes.Buffer
	now := epoch
	p := &progress{ref: "a", out: &out, start: epoch, now: func() time.Time { return now }}
	for range 50 {
		p.show()
		now = now.Add(200 * time.Millisecond)
	}
	p.last = &berthv1.WatchPullResponse{Stage: "unpacking"}
	p.show()
	if want := "a: pulling, 0s\na: pulling, 5s\na: unpacking, 10s\n"; out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

// Progress ends with the pull, also where the runtime has none to tell.
func TestProgressEnds(t *testing.T) {
	for name, c := range map[string]*canned{
		"done":   {progress: []*berthv1.WatchPullResponse{{Stage: "done"}}},
		"untold": {},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			a := &app{IO: IO{Err: &out}, endpoint: c.serve(t), timeout: time.Minute, now: time.Now}
			err := a.with(t.Context(), func(ctx context.Context, n *node) error {
				ctx, cancel := context.WithCancel(ctx)
				p := a.newProgress("a")
				done := make(chan struct{})
				go func() {
					defer close(done)
					p.run(ctx, n.berth)
				}()
				cancel()
				<-done
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}
