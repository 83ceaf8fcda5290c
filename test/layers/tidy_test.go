package layers

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	maxFileLines = 400
	maxFuncLines = 60
)

// These words are put together here, so that this file does not contain them.
var (
	markers = regexp.MustCompile(`\b(` + strings.Join([]string{"TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"}, "|") + `)\b`)
	skips   = regexp.MustCompile(`\b(t|b|f|tb)\.Sk` + `ip(f|Now)?\(`)
	places  = regexp.MustCompile(`(^|[^\w./-])/(wo` + `rk|ro` + `ot)/[a-z]`)
)

// skippers may skip: `make check` leaves out tests that need root, and a checkout without history has no last release to
// upgrade from. `make test` lists what was skipped.
var skippers = []string{"test/privilege/privilege.go", "test/upgrade/upgrade_test.go"}

func maySkip(file string) bool {
	return slices.ContainsFunc(skippers, func(s string) bool { return strings.HasSuffix(file, s) })
}

func generated(source string) bool { return strings.Contains(source, "// Code generated ") }

// TestNothingUnfinished: no marker of unfinished work, no skipped test, no path of one machine.
func TestNothingUnfinished(t *testing.T) {
	for _, f := range files(t, ".go", ".md", ".sh", ".yml", ".proto", "Makefile", "prepare", "run") {
		lines := bufio.NewScanner(strings.NewReader(read(t, f)))
		lines.Buffer(nil, 1<<20)
		for n := 1; lines.Scan(); n++ {
			line := lines.Text()
			if m := markers.FindString(line); m != "" {
				t.Errorf("%s: %s: finish it or open an issue", where(f, n), m)
			}
			if strings.HasSuffix(f, ".go") && !maySkip(f) && skips.MatchString(line) {
				t.Errorf("%s: a skipped test proves nothing: fail with what is missing", where(f, n))
			}
			if strings.HasSuffix(f, ".go") && !strings.HasSuffix(f, "_test.go") && places.MatchString(line) {
				t.Errorf("%s: a path of one machine: %s", where(f, n), strings.TrimSpace(line))
			}
		}
		if err := lines.Err(); err != nil {
			t.Errorf("read %s: %v", f, err)
		}
	}
}

// TestLengths: a file has one subject, a function one step.
func TestLengths(t *testing.T) {
	for _, f := range files(t, ".go") {
		source := read(t, f)
		if generated(source) {
			continue
		}
		if n := strings.Count(source, "\n"); n > maxFileLines {
			t.Errorf("%s has %d lines, more than %d: is there more than one noun in it?", f, n, maxFileLines)
		}
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, f, source, parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("parse %s: %v", f, err)
			continue
		}
		for _, d := range tree.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			from, to := set.Position(fn.Pos()).Line, set.Position(fn.End()).Line
			if n := to - from + 1; n > maxFuncLines {
				t.Errorf("%s: %s has %d lines, more than %d", where(f, from), fn.Name.Name, n, maxFuncLines)
			}
		}
	}
}

// TestPackages: every package says what it is, and has a noun for a name.
func TestPackages(t *testing.T) {
	drawers := []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "shared"}
	for _, p := range packages(t) {
		if base := filepath.Base(p.ImportPath); slices.Contains(drawers, base) {
			t.Errorf("%s: %q is a drawer, not a noun: a helper lives with its noun", p.name(), base)
		}
		if p.ImportPath == strings.TrimSuffix(module, "/") {
			t.Error("there is Go source at the root: programs live in cmd, packages in internal")
		}
		if !documented(t, p.Dir) {
			t.Errorf("%s has no package comment", p.name())
		}
	}
}

func documented(t *testing.T, dir string) bool {
	t.Helper()
	sources, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range sources {
		tree, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Errorf("parse %s: %v", f, err)
			continue
		}
		if tree.Doc != nil && len(strings.Fields(tree.Doc.Text())) >= 5 {
			return true
		}
	}
	return false
}
