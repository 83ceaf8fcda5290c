// Package hook reads the JSON files of directories of OCI hooks, in the form 1.0.0 that oci-hooks(5) describes, and adds to the
// spec of a container those that are meant for it. The files belong to the administrator: their programs run as root on the host.
package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/directory"
)

const (
	formVersion = "1.0.0"
	suffix      = ".json"

	// The limits of what is read: each container is compared with each hook.
	maxFile     = 64 << 10
	maxHooks    = 128
	maxPatterns = 64
	// othersWrite are the rights by which a file could be changed by others than its owner.
	othersWrite = 0o022
)

// Set is the hooks of a node. It does not change.
type Set struct{ hooks []hook }

// hook is one file.
type hook struct {
	name    string
	program specs.Hook
	when    condition
	stages  []string
}

// file is a hook as it is written.
type file struct {
	Version string     `json:"version"`
	Hook    specs.Hook `json:"hook"`
	When    struct {
		Always        *bool             `json:"always"`
		Annotations   map[string]string `json:"annotations"`
		Commands      []string          `json:"commands"`
		HasBindMounts *bool             `json:"hasBindMounts"`
	} `json:"when"`
	Stages []string `json:"stages"`
}

// Open reads the hooks of directories. A file takes the place of one with the same name in an earlier directory. A directory
// may be absent. The error names the file and the reason, and is of kind errdefs.ErrInvalidArgument.
func Open(dirs []string) (*Set, error) {
	byName := map[string]hook{}
	for _, dir := range dirs {
		names, err := list(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			path := filepath.Join(dir, name)
			h, err := read(path)
			if err != nil {
				return nil, fmt.Errorf("hook %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
			}
			h.name = name
			byName[name] = h
		}
	}
	if len(byName) > maxHooks {
		return nil, fmt.Errorf("%d hooks in %s: want at most %d: %w", len(byName), strings.Join(dirs, ", "), maxHooks, errdefs.ErrInvalidArgument)
	}
	s := &Set{}
	for _, h := range byName {
		s.hooks = append(s.hooks, h)
	}
	slices.SortFunc(s.hooks, func(a, b hook) int { return strings.Compare(a.name, b.name) })
	return s, nil
}

// list returns the names of the files of a directory that only its owner can change.
func list(dir string) ([]string, error) {
	opened, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read hooks: %w", err)
	}
	defer opened.Close() //nolint:errcheck // opened for reading only
	if err := checkOwner(opened); err != nil {
		return nil, fmt.Errorf("directory of hooks %s: %w: %w", dir, err, errdefs.ErrInvalidArgument)
	}
	entries, err := opened.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("read hooks: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), suffix) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// checkOwner refuses what a user who is not root could change.
func checkOwner(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to user %d, not to root", st.Uid)
	}
	if st.Mode&othersWrite != 0 {
		return fmt.Errorf("has mode %#o: others than its owner can write it", st.Mode&0o7777)
	}
	return nil
}

func read(path string) (hook, error) {
	f, err := directory.OpenRegular(path)
	if err != nil {
		return hook{}, err
	}
	defer f.Close() //nolint:errcheck // opened for reading only
	if err := checkOwner(f); err != nil {
		return hook{}, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return hook{}, err
	}
	if len(data) > maxFile {
		return hook{}, fmt.Errorf("is larger than %d bytes", maxFile)
	}
	var content file
	if err := json.Unmarshal(data, &content); err != nil {
		return hook{}, fmt.Errorf("is no hook: %w", err)
	}
	return content.parse()
}

func (f file) parse() (h hook, err error) {
	if f.Version != formVersion {
		return h, fmt.Errorf("version %q: only %s is known", f.Version, formVersion)
	}
	if err := checkProgram(f.Hook); err != nil {
		return h, err
	}
	if len(f.Stages) == 0 {
		return h, errors.New("stages: must name at least one")
	}
	for _, stage := range f.Stages {
		if stageOf(&specs.Hooks{}, stage) == nil {
			return h, fmt.Errorf("stages: %q is unknown", stage)
		}
	}
	h = hook{program: f.Hook, stages: f.Stages, when: condition{always: f.When.Always, hasBindMounts: f.When.HasBindMounts}}
	if len(f.When.Annotations)+len(f.When.Commands) > maxPatterns {
		return h, fmt.Errorf("when: has more than %d patterns", maxPatterns)
	}
	for key, value := range f.When.Annotations {
		var pair [2]*regexp.Regexp
		for i, text := range []string{key, value} {
			if pair[i], err = regexp.Compile(text); err != nil {
				return h, fmt.Errorf("when.annotations: %w", err)
			}
		}
		h.when.annotations = append(h.when.annotations, pair)
	}
	for _, text := range f.When.Commands {
		pattern, err := regexp.Compile(text)
		if err != nil {
			return h, fmt.Errorf("when.commands: %w", err)
		}
		h.when.commands = append(h.when.commands, pattern)
	}
	return h, nil
}

// checkProgram refuses a program that the OCI runtime could not run, or that others can change.
func checkProgram(p specs.Hook) error {
	if !filepath.IsAbs(p.Path) {
		return fmt.Errorf("hook.path %q: must be an absolute path", p.Path)
	}
	if p.Timeout != nil && *p.Timeout <= 0 {
		return fmt.Errorf("hook.timeout %d: must be positive", *p.Timeout)
	}
	f, err := directory.OpenRegular(p.Path)
	if err != nil {
		return fmt.Errorf("hook.path: %w", err)
	}
	defer f.Close() //nolint:errcheck // opened for reading only
	if err := checkOwner(f); err != nil {
		return fmt.Errorf("hook.path %q: %w", p.Path, err)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode()&0o111 == 0 {
		return fmt.Errorf("hook.path %q: is not executable", p.Path)
	}
	return nil
}

// Inject adds the hooks that match a container whose process is set, and returns the names of their files.
func (s *Set) Inject(result *specs.Spec, annotations map[string]string, hasMounts bool) []string {
	var names []string
	for _, h := range s.hooks {
		if !h.when.holds(result.Process, annotations, hasMounts) {
			continue
		}
		names = append(names, h.name)
		if result.Hooks == nil {
			result.Hooks = &specs.Hooks{}
		}
		for _, stage := range h.stages {
			list := stageOf(result.Hooks, stage)
			*list = append(*list, h.program)
		}
	}
	return names
}

// stageOf returns the hooks of a stage, nil for one that does not exist.
func stageOf(hooks *specs.Hooks, stage string) *[]specs.Hook {
	switch stage {
	case "prestart":
		return &hooks.Prestart //nolint:staticcheck // the form has it
	case "createRuntime":
		return &hooks.CreateRuntime
	case "createContainer":
		return &hooks.CreateContainer
	case "startContainer":
		return &hooks.StartContainer
	case "poststart":
		return &hooks.Poststart
	case "poststop":
		return &hooks.Poststop
	}
	return nil
}
