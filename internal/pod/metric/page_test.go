package metric

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the table of docs/metrics.md")

const (
	page  = "../../../docs/metrics.md"
	title = "| metric | of | labels beside the common ones | what it is | given by hosts with |\n|---|---|---|---|---|\n"
)

// TestPage: the page for users has every metric as the table in the code has it.
func TestPage(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, _, ok := strings.Cut(string(text), title)
	if !ok {
		t.Fatalf("%s has no table that begins with\n%s", page, title)
	}
	var want strings.Builder
	want.WriteString(before + title)
	for _, f := range New(everything).families {
		of := map[subject]string{container: "container", pod: "pod", both: "both"}[f.of]
		hosts := "any"
		if f.given != nil {
			hosts = f.given.words
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s | %s | %s |\n", f.name, of, strings.Join(f.keys, ", "), strings.TrimSuffix(f.help, "."), hosts)
	}
	switch {
	case want.String() == string(text):
	case *rewrite:
		if err := os.WriteFile(page, []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("%s is not what the code says; rewrite it with: go test ./internal/pod/metric -run TestPage -rewrite", page)
	}
}
