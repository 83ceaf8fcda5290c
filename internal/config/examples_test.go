package config

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	exampleBlock = regexp.MustCompile("(?ms)^```toml\n(.*?)^```$")
	keyInText    = regexp.MustCompile("`([a-z]+)\\.([a-z_]+)(?: = [^`]*)?`")
	tableTitle   = regexp.MustCompile("(?m)^### `\\[([a-z]+)\\]`$")
	keyRow       = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|")
)

// TestExamplesInDocs: every example of a configuration in the documentation is accepted as it stands, and every key that is
// named as `table.key` exists.
func TestExamplesInDocs(t *testing.T) {
	known := keysOfReference(t)
	var examples, names int
	for _, page := range docPages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range exampleBlock.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(block[1], "hosts.toml") { // a registry's file, not the daemon's
				continue
			}
			examples++
			if _, err := Parse(page, []byte(block[1])); err != nil {
				t.Errorf("an example is refused: %v\n%s", err, block[1])
			}
		}
		if !strings.Contains(page, "kubernetes") { // other pages name files and fields of other programs in this form
			continue
		}
		for _, name := range keyInText.FindAllStringSubmatch(string(text), -1) {
			keys, table := known[name[1]]
			if !table {
				continue
			}
			names++
			if !slices.Contains(keys, name[2]) {
				t.Errorf("%s names %s.%s, which is no key", page, name[1], name[2])
			}
		}
	}
	if examples < 10 || names < 30 {
		t.Errorf("found %d examples and %d names of keys: fewer than there are", examples, names)
	}
}

func docPages(t *testing.T) []string {
	t.Helper()
	var pages []string
	for _, pattern := range []string{"../../docs/*.md", "../../docs/kubernetes/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	return pages
}

// keysOfReference returns the keys of each table.
func keysOfReference(t *testing.T) map[string][]string {
	t.Helper()
	known := map[string][]string{}
	text := Reference()
	titles := tableTitle.FindAllStringSubmatchIndex(text, -1)
	for i, at := range titles {
		end := len(text)
		if i+1 < len(titles) {
			end = titles[i+1][0]
		}
		for _, row := range keyRow.FindAllStringSubmatch(text[at[1]:end], -1) {
			known[text[at[2]:at[3]]] = append(known[text[at[2]:at[3]]], row[1])
		}
	}
	if !slices.Contains(known["network"], "netns_dir") {
		t.Fatalf("the reference lists %v", known)
	}
	return known
}
