package refusals

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// packages refuse requests.
var packages = []string{"spec", "pod", "network", "cri", "image", "cdi", "nri", "apparmor", "selinux", "stream"}

// kinds are the errors about a request.
var kinds = []string{"ErrInvalidArgument", "ErrFailedPrecondition", "ErrNotImplemented", "ErrOutOfRange", "ErrPermissionDenied"}

// makers are functions that make such an error of their arguments.
var makers = []string{"invalid", "unavailable"}

// refusalsOf counts the errors about a request that each function of a package makes.
func refusalsOf(t *testing.T, dir string) map[string]int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../../internal", dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("files of %s: %v, %v", dir, files, err)
	}
	counts := map[string]int{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && !slices.Contains(makers, f.Name.Name) {
				ast.Inspect(f, func(n ast.Node) bool {
					if call, ok := n.(*ast.CallExpr); ok && refuses(call) {
						counts[dir+"."+f.Name.Name]++
					}
					return true
				})
			}
		}
	}
	return counts
}

// refuses returns whether a call makes an error about a request.
func refuses(call *ast.CallExpr) bool {
	if f, ok := call.Fun.(*ast.Ident); ok && slices.Contains(makers, f.Name) {
		return true
	}
	return slices.ContainsFunc(call.Args, func(arg ast.Expr) bool {
		kind, ok := arg.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		from, ok := kind.X.(*ast.Ident)
		return ok && from.Name == "errdefs" && slices.Contains(kinds, kind.Sel.Name)
	})
}

// TestEveryRefusalIsListed: each place in the code that refuses a request has a line for each of its refusals, and no line is
// about code that is not there.
func TestEveryRefusalIsListed(t *testing.T) {
	list, others, err := All()
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]int{}
	for _, r := range list {
		for _, place := range r.Places {
			listed[place]++
		}
	}
	explained := map[string]int{}
	for _, e := range others {
		explained[e.Place] += e.Count
	}
	made := map[string]int{}
	for _, dir := range packages {
		for place, count := range refusalsOf(t, dir) {
			made[place] = count
			if listed[place]+explained[place] < count {
				t.Errorf("%s makes %d refusals, refusals.txt has %d lines about it and explains %d", place, count, listed[place], explained[place])
			}
		}
	}
	for place := range listed {
		if made[place] == 0 {
			t.Errorf("refusals.txt has a line about %s, which refuses nothing", place)
		}
	}
	for place, count := range explained {
		if count > made[place] {
			t.Errorf("refusals.txt explains %d refusals of %s, which makes %d", count, place, made[place])
		}
	}
}

// TestListIsRead: what is wrong in the list has its line in the error.
func TestListIsRead(t *testing.T) {
	for text, want := range map[string]string{
		"a | {}":                                   "line 1: 2 parts",
		"a | {} | Nothing | w | p | y | c | o":     "line 1: invalid code",
		"a | {| Unknown | w | p | y | c | o":       "line 1: 7 parts",
		"a | {x} | Unknown | w | p | y | c | o":    "line 1: {x} is not JSON",
		"elsewhere | spec.x one | because":         "line 1: \"spec.x one\"",
		"\n\na | {} | NotFound | w | p | y | c |o": "line 3: 7 parts",
	} {
		if _, _, err := parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", text, err, want)
		}
	}
	list, _, err := parse(`a | {"x": "<3 y>"} | NotFound | w | p.q p.r | y | c | o`)
	if err != nil || len(list) != 1 || list[0].Patch != `{"x": "yyy"}` || !slices.Equal(list[0].Places, []string{"p.q", "p.r"}) {
		t.Errorf("got %+v, %v", list, err)
	}
	merged, err := Apply([]byte(`{"a": {"b": 1, "c": 2}, "d": [1]}`), []byte(`{"a": {"b": null, "e": 3}, "d": []}`))
	if want := `{"a":{"c":2,"e":3},"d":[]}`; err != nil || string(merged) != want {
		t.Errorf("got %s, %v, want %s", merged, err, want)
	}
}
