package config

import (
	"flag"
	"os"
	"strings"
	"testing"
)

//go:generate go test -run ^TestDocs$ -update .

var update = flag.Bool("update", false, "write what docs/configuration.md should say into it")

const (
	docsFile = "../../docs/configuration.md"
	begin    = "<!-- keys: made from internal/config by `make generate` -->\n"
	end      = "<!-- end of keys -->\n"
)

// The page that people read says what the code does.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(text), begin)
	have, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s lacks the marks %q and %q", docsFile, begin, end)
	}
	want := "\n" + Reference()
	if have == want {
		return
	}
	if !*update {
		t.Fatalf("%s does not say what the code does; run: make generate", docsFile)
	}
	if err := os.WriteFile(docsFile, []byte(before+begin+want+end+after), 0o600); err != nil {
		t.Fatal(err)
	}
}
