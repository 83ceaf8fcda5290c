package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// show writes what happens.
type show struct {
	out   io.Writer
	color bool
	began time.Time
}

func newShow() *show {
	return &show{out: os.Stdout, color: term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == "", began: time.Now()}
}

func (s *show) paint(code, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// chapter begins a part of the story.
func (s *show) chapter(title string) { fmt.Fprintf(s.out, "\n%s\n", s.paint("1", title)) }

// step does something and writes what, what came of it, and how long it took.
func (s *show) step(what string, do func() (result string, err error)) error {
	begin := time.Now()
	result, err := do()
	took := time.Since(begin)
	if err != nil {
		fmt.Fprintf(s.out, "  %s %-26s %s\n", s.paint("31", "✗"), what, s.paint("31", "failed"))
		return fmt.Errorf("%s: %w", what, err)
	}
	first, rest, _ := strings.Cut(strings.TrimRight(result, "\n"), "\n")
	fmt.Fprintf(s.out, "  %s %-26s %s  %s\n", s.paint("32", "✓"), what, s.paint("36", fmt.Sprintf("%8s", pretty(took))), first)
	for line := range strings.Lines(rest) {
		fmt.Fprintf(s.out, "%41s%s\n", "", strings.TrimSuffix(line, "\n"))
	}
	return nil
}

// do describes a step for later.
func (s *show) do(what string, f func() (result string, err error)) func() error {
	return func() error { return s.step(what, f) }
}

// steps takes one step after the other until one fails.
func (s *show) steps(list ...func() error) error {
	for _, step := range list {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// pretty rounds a duration to what a reader can use.
func pretty(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
