// Command summary runs `go test` with its arguments and shows what that shows, and at the end which tests were skipped and
// why, and which packages took longest.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// slowest is how many packages the summary names.
const slowest = 5

// event is a line of `go test -json`.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

func main() {
	cmd := exec.CommandContext(context.Background(), "go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run go test:", err)
		os.Exit(1)
	}
	err = errors.Join(newSummary(os.Stdout).read(out), cmd.Wait())
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(max(exit.ExitCode(), 1))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run go test:", err)
		os.Exit(1)
	}
}

// summary collects what the tests say.
type summary struct {
	out io.Writer
	// output is what a test or package has written so far, by package and test.
	output  map[[2]string]*strings.Builder
	skipped []string
	took    map[string]float64
}

func newSummary(out io.Writer) *summary {
	return &summary{out: out, output: map[[2]string]*strings.Builder{}, took: map[string]float64{}}
}

// read shows the events of all packages, and then the summary. What is no event is shown as it is.
func (s *summary) read(events io.Reader) error {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if len(line) > 0 && json.Unmarshal(line, &e) == nil && e.Action != "" {
			s.add(e)
		} else {
			fmt.Fprintf(s.out, "%s", line)
		}
		if errors.Is(err, io.EOF) {
			s.end()
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the events of go test: %w", err)
		}
	}
}

func (s *summary) add(e event) {
	key := [2]string{e.Package, e.Test}
	switch e.Action {
	case "output", "build-output":
		if s.output[key] == nil {
			s.output[key] = &strings.Builder{}
		}
		s.output[key].WriteString(e.Output)
		if e.Action == "build-output" {
			fmt.Fprint(s.out, e.Output)
		}
		return
	case "pass":
	case "fail":
		if e.Test != "" {
			fmt.Fprint(s.out, s.text(key))
		}
	case "skip":
		if e.Test != "" {
			s.skipped = append(s.skipped, skipLine(e.Package, e.Test, s.text(key)))
		}
	default:
		return
	}
	if e.Test == "" {
		if e.Action == "fail" {
			s.showUnfinished(e.Package)
		}
		s.took[e.Package] = e.Elapsed
		fmt.Fprint(s.out, shown(s.text(key), e.Action == "fail"))
	}
	delete(s.output, key)
}

// showUnfinished shows what the tests of a package have written that have no result: the test binary ended before.
func (s *summary) showUnfinished(pkg string) {
	var tests []string
	for key := range s.output {
		if key[0] == pkg && key[1] != "" {
			tests = append(tests, key[1])
		}
	}
	slices.Sort(tests)
	for _, test := range tests {
		fmt.Fprint(s.out, s.text([2]string{pkg, test}))
		delete(s.output, [2]string{pkg, test})
	}
}

func (s *summary) text(key [2]string) string {
	if b := s.output[key]; b != nil {
		return b.String()
	}
	return ""
}

// shown is what is shown of the output of a package: the line with its result, and all of it if the package failed.
func shown(text string, failed bool) string {
	if failed {
		return text
	}
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if line != "PASS\n" && !strings.HasPrefix(line, "-test.shuffle ") && !strings.HasPrefix(line, "testing: warning: no tests to run") &&
			!strings.Contains(line, "[no test files]") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// skipLine names a skipped test with its reason, which is in its output between the lines of the test runner.
func skipLine(pkg, test, text string) string {
	var reason []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			if place, words, ok := strings.Cut(line, ": "); ok && strings.Contains(place, ".go:") {
				line = words
			}
			reason = append(reason, line)
		}
	}
	return fmt.Sprintf("%s %s: %s", pkg, test, strings.Join(reason, " "))
}

// end shows which packages took longest, and what was skipped: tests that need root are counted by package only.
func (s *summary) end() {
	names := make([]string, 0, len(s.took))
	for name := range s.took {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if s.took[a] != s.took[b] {
			return int(1000 * (s.took[b] - s.took[a]))
		}
		return strings.Compare(a, b)
	})
	fmt.Fprintln(s.out, "slowest packages:")
	for _, name := range names[:min(slowest, len(names))] {
		fmt.Fprintf(s.out, "  %6.1f s  %s\n", s.took[name], name)
	}
	if len(s.skipped) == 0 {
		fmt.Fprintln(s.out, "skipped: nothing")
		return
	}
	root := 0
	for _, line := range s.skipped {
		if strings.HasSuffix(line, ": needs root: run make test") {
			root++
		}
	}
	fmt.Fprintf(s.out, "skipped: %d tests, %d of them because they need root (run make test as root)\n", len(s.skipped), root)
	slices.Sort(s.skipped)
	for _, line := range s.skipped {
		if !strings.HasSuffix(line, ": needs root: run make test") {
			fmt.Fprintln(s.out, " ", line)
		}
	}
}
