package support

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	readmePromise  = regexp.MustCompile(`(?m)^- \*\*(.+?)\.\*\*`)
	promiseHeading = regexp.MustCompile(`(?m)^## (.+)$`)
	heldBy         = regexp.MustCompile("`((?:Test|Benchmark)\\w+)`")
)

// TestPromisesAreHeld: each promise of the README is a heading of docs/promises.md and the reverse; each row
// below it names tests or benchmarks that exist.
func TestPromisesAreHeld(t *testing.T) {
	const file = "../../docs/promises.md"
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	promised, headings := firsts(readmePromise, string(readme)), firsts(promiseHeading, string(page))
	if len(promised) == 0 || !slices.Equal(promised, headings) {
		t.Errorf("the README promises %q, the headings of %s are %q", promised, file, headings)
	}
	exists, rows := existingTests(t), 0
	for row := range strings.Lines(string(page)) {
		if !strings.HasPrefix(row, "|") || strings.HasPrefix(row, "|---") || strings.HasPrefix(row, "| promise |") {
			continue
		}
		rows++
		names := firsts(heldBy, row)
		if len(names) == 0 {
			t.Errorf("%s: this row names no test and no benchmark: %s", file, row)
		}
		for _, name := range names {
			if !exists[name] {
				t.Errorf("%s: %s does not exist", file, name)
			}
		}
	}
	if rows < len(headings) {
		t.Errorf("%s has %d rows for %d promises", file, rows, len(headings))
	}
}

// firsts returns the first group of each match.
func firsts(re *regexp.Regexp, text string) []string {
	var all []string
	for _, m := range re.FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}
