package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-runtime/berth/test/command"
	"github.com/berth-runtime/berth/test/conformance"
)

const (
	// payloadSpace is what the second disk has beside its content: critest's registry gets another image.
	payloadSpace = 256 << 20

	binDir         = Mountpoint + "/bin"
	conformanceDir = Mountpoint + "/conformance"
)

// payload is the second disk: what is tested, and the tests.
type payload struct {
	// tree is the repository, disk the image to make.
	tree, disk string
	steps      []Step
}

// make builds everything that the steps need and puts it onto the disk.
func (p payload) make(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(p.disk), "payload-")
	if err != nil {
		return fmt.Errorf("make the disk of the tests: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := p.build(ctx, dir); err != nil {
		return err
	}
	if p.needs(conformanceDir) {
		if err := conformance.Prepare(ctx, p.tree, filepath.Join(dir, "conformance")); err != nil {
			return err
		}
	}
	plan, err := json.Marshal(p.steps)
	if err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, filepath.Base(PlanFile)), plan, 0o600); err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	size, err := sizeOf(dir)
	if err != nil {
		return err
	}
	_, err = command.Run(ctx, "", "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", dir, p.disk, fmt.Sprintf("%dK", (size*5/4+payloadSpace)>>10))
	return err
}

// build builds the programs, and the test binary of each package that a step is about.
func (p payload) build(ctx context.Context, dir string) error {
	static := command.Command{Dir: p.tree, Env: []string{"CGO_ENABLED=0"}}
	flags := []string{"-trimpath", "-ldflags", "-s -w", "-o"}
	bin := filepath.Join(dir, "bin") + "/"
	argv := append(append([]string{"go", "build"}, flags...), bin, "./cmd/berthd", "./cmd/berth-shim", "./cmd/berth", "./test/vm/guest")
	if _, err := static.Run(ctx, argv...); err != nil {
		return err
	}
	// The unit belongs to what is tested.
	if err := os.CopyFS(filepath.Join(dir, "tree", "packaging"), os.DirFS(filepath.Join(p.tree, "packaging"))); err != nil {
		return fmt.Errorf("copy the unit: %w", err)
	}
	built := map[string]bool{}
	for _, s := range p.steps {
		pkg, ok := strings.CutPrefix(s.Dir, Mountpoint+"/tree/")
		if !ok || built[pkg] {
			continue
		}
		built[pkg] = true
		into := filepath.Join(dir, "tree", pkg)
		argv := append(append([]string{"go", "test", "-c"}, flags...), filepath.Join(into, testProgram), "./"+pkg)
		if _, err := static.Run(ctx, argv...); err != nil {
			return err
		}
		data := filepath.Join(p.tree, pkg, "testdata")
		if _, err := os.Stat(data); err != nil {
			continue
		}
		if err := os.CopyFS(filepath.Join(into, "testdata"), os.DirFS(data)); err != nil {
			return fmt.Errorf("copy the test data of %s: %w", pkg, err)
		}
	}
	return nil
}

// needs tells whether a step names a path.
func (p payload) needs(path string) bool {
	for _, s := range p.steps {
		if strings.Contains(strings.Join(s.Argv, " "), path) {
			return true
		}
	}
	return false
}

// sizeOf adds up the files of a directory.
func sizeOf(dir string) (int64, error) {
	var size int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size += info.Size()
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return size, nil
}
