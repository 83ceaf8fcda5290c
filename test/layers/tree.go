// Package layers holds the rules of the source tree as tests: which package may import which, and what keeps the tree
// tidy. Every rule says why it is there, and fails too when what it speaks of no longer exists.
package layers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// module is the path of ours.
const module = "github.com/berth-runtime/berth/"

// pkg is what `go list` says about a package.
type pkg struct {
	ImportPath                               string
	Dir                                      string
	Imports, TestImports, XTestImports, Deps []string
}

// name is the path of one of our packages within the module.
func (p pkg) name() string { return strings.TrimPrefix(p.ImportPath, module) }

// root returns the top of the source tree.
func root(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatalf("find the top of the source tree: %v", err)
	}
	return dir
}

// packages lists all of ours.
func packages(t testing.TB) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,Imports,TestImports,XTestImports,Deps", "./...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("list packages: %v: %s", err, stderr.Bytes())
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("read the list of packages: %v", err)
		}
		all = append(all, p)
	}
}

// within returns whether a package path is that of a pattern or beneath it. The pattern "..." matches everything.
func within(path, pattern string) bool {
	return pattern == "..." || path == pattern || strings.HasPrefix(path, pattern+"/")
}

func withinAny(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return within(path, p) })
}

// files lists the files of the tree that have one of the endings, relative to its top.
func files(t testing.TB, endings ...string) []string {
	t.Helper()
	var found []string
	top := root(t)
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(path, top+"/")
		if d.IsDir() && (rel == ".git" || rel == "bin") {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() && slices.ContainsFunc(endings, func(e string) bool { return strings.HasSuffix(rel, e) }) {
			found = append(found, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("list files: %v", err)
	}
	return found
}

func read(t testing.TB, rel string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root(t), rel))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// where names a place in a file.
func where(rel string, line int) string { return fmt.Sprintf("%s:%d", rel, line) }
