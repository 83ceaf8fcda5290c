package layers

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	mdLink     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	mdHeading  = regexp.MustCompile(`(?m)^(#+) +(.*)$`)
	codeFence  = regexp.MustCompile("(?ms)^```.*?^```")
	notInSlug  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	makeTarget = regexp.MustCompile("`make ([a-z]+)`")
	require    = regexp.MustCompile(`(?m)^\s*(?:require )?([a-z0-9.-]+\.[a-z]+/\S+) v\S+`)
)

// slug is the anchor that a heading gets.
func slug(heading string) string {
	return strings.ReplaceAll(notInSlug.ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), ""), " ", "-")
}

// TestDocLinks: links within the tree lead somewhere, and each page has one title, on its first line.
func TestDocLinks(t *testing.T) {
	for _, page := range files(t, ".md") {
		text := codeFence.ReplaceAllString(read(t, page), "")
		titles := 0
		for _, h := range mdHeading.FindAllStringSubmatch(text, -1) {
			if h[1] == "#" {
				titles++
			}
		}
		if titles != 1 || !strings.HasPrefix(text, "# ") {
			t.Errorf("%s has %d titles, want one, on the first line", page, titles)
		}
		for _, link := range mdLink.FindAllStringSubmatch(text, -1) {
			if strings.Contains(link[1], "://") {
				continue
			}
			checkLink(t, page, link[1])
		}
	}
}

func checkLink(t *testing.T, page, link string) {
	t.Helper()
	path, anchor, _ := strings.Cut(link, "#")
	target := page
	if path != "" {
		target = filepath.Join(filepath.Dir(page), path)
	}
	if _, err := os.Stat(filepath.Join(root(t), target)); err != nil {
		t.Errorf("%s links to %s, which is not there", page, link)
		return
	}
	if anchor == "" || !strings.HasSuffix(target, ".md") {
		return
	}
	for _, h := range mdHeading.FindAllStringSubmatch(read(t, target), -1) {
		if slug(h[2]) == anchor {
			return
		}
	}
	t.Errorf("%s links to %s, which has no heading %q", page, link, anchor)
}

// TestDocMap: docs/README.md leads to every page beside it.
func TestDocMap(t *testing.T) {
	index := read(t, "docs/README.md")
	for _, page := range files(t, ".md") {
		rel, inDocs := strings.CutPrefix(page, "docs/")
		if inDocs && rel != "README.md" && !strings.Contains(index, "]("+rel+")") {
			t.Errorf("docs/README.md does not link to %s", rel)
		}
	}
}

// TestMakeTargets: a target that a page names exists, and `make help` says what each needs and how long it takes.
func TestMakeTargets(t *testing.T) {
	makefile := read(t, "Makefile")
	for _, page := range files(t, ".md") {
		for _, m := range makeTarget.FindAllStringSubmatch(read(t, page), -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `:.*## `).MatchString(makefile) {
				t.Errorf("%s names `make %s`, which `make help` does not list", page, m[1])
			}
		}
	}
}

// TestDependencies: docs/dependencies.md has a line for each module that is imported, and for no other.
func TestDependencies(t *testing.T) {
	var modules []string
	for _, m := range require.FindAllStringSubmatch(read(t, "go.mod"), -1) {
		modules = append(modules, m[1])
	}
	used := map[string]bool{}
	for _, p := range packages(t) {
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if m := moduleOf(i, modules); m != "" {
				used[m] = true
			}
		}
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(read(t, "docs/dependencies.md"), -1) {
		listed[m[1]] = true
		if !used[m[1]] {
			t.Errorf("docs/dependencies.md lists %s, which nothing imports", m[1])
		}
	}
	for m := range used {
		if !listed[m] {
			t.Errorf("docs/dependencies.md has no line for %s", m)
		}
	}
}

// moduleOf finds the module of an import path: the longest that is a prefix of it.
func moduleOf(path string, modules []string) string {
	best := ""
	for _, m := range modules {
		if within(path, m) && len(m) > len(best) {
			best = m
		}
	}
	return best
}
