package ociruntime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/ociruntime/probecontainer"
)

// probeTimeout bounds a probe whose context has no deadline.
const probeTimeout = 30 * time.Second

// remedies pair a part of a runtime's complaint with what the administrator can do.
var remedies = []struct{ complaint, remedy string }{
	{"hugetlb", "mount the controller as v1: mount -t cgroup -o hugetlb cgroup /sys/fs/cgroup/hugetlb"},
	{"cgroups in hybrid mode", "mount the controllers that sit on the v2 hierarchy (often hugetlb) as v1, or use runc"},
	{"unknown version specified", "install a newer version of the runtime"},
	{"oom_score_adj", "give the daemon CAP_SYS_RESOURCE"},
	{"operation not permitted", "give the daemon CAP_SYS_ADMIN, or allow the system call in the filter it runs under"},
	{"no space left on device", "make room, or raise the limit on cgroups or namespaces"},
}

// Probe finds out what a runtime supports, and runs probe containers with it in a directory. The error
// says why it does not work on this host and, where known, what would help. Nothing of the containers is left in either
// case.
func Probe(ctx context.Context, h Handler, dir string) (Features, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, probeTimeout)
		defer cancel()
	}
	var features Features
	err := try(ctx, h, dir, func(r *Runtime, t *probecontainer.Container) (err error) {
		if features, err = r.features(ctx, t.Dir); err != nil {
			return err
		}
		return r.tryRun(ctx, t, t.Spec(features.OCIVersion, h.SystemdCgroup))
	})
	if err != nil {
		return features, &ProbeError{Handler: h.Name, Remedy: remedy(err), Err: err}
	}
	err = try(ctx, h, dir, func(r *Runtime, t *probecontainer.Container) error {
		return r.tryRun(ctx, t, withUserNamespace(t.Spec(features.OCIVersion, h.SystemdCgroup)))
	})
	if err != nil {
		features.UserNamespacesProblem = err.Error()
	} else {
		features.UserNamespaces = true
	}
	return features, nil
}

// try makes a probe container of a handler and removes it.
func try(ctx context.Context, h Handler, dir string, run func(*Runtime, *probecontainer.Container) error) (err error) {
	t, err := probecontainer.New(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close(ctx)) }()
	h.Root = t.Root()
	r, err := New(h, Local{})
	if err != nil {
		return err
	}
	return run(r, t)
}

// Inspect asks a runtime what it supports, without running a container. What is needed for that is in scratch and in the
// handler's root.
func Inspect(ctx context.Context, h Handler, scratch string) (Features, error) {
	r, err := New(h, Local{})
	if err != nil {
		return Features{}, err
	}
	return r.features(ctx, scratch)
}

// ProbeError says why a handler does not work on this host.
type ProbeError struct {
	// Handler is the configured name.
	Handler string
	// Remedy tells the administrator what to change; empty if unknown.
	Remedy string
	// Err is the cause.
	Err error
}

func (e *ProbeError) Error() string {
	text := fmt.Sprintf("probe runtime handler %q: %v", e.Handler, e.Err)
	if e.Remedy != "" {
		text += " (remedy: " + e.Remedy + ")"
	}
	return text
}

func (e *ProbeError) Unwrap() error { return e.Err }

func remedy(err error) string {
	for _, r := range remedies {
		if strings.Contains(strings.ToLower(err.Error()), r.complaint) {
			return r.remedy
		}
	}
	return ""
}

// featuresAnswer is the part of the runtime specification's features document that matters.
type featuresAnswer struct {
	OCIVersionMax string   `json:"ociVersionMax"`
	MountOptions  []string `json:"mountOptions"`
	Annotations   struct {
		RuncCheckpoint string `json:"org.opencontainers.runc.checkpoint.enabled"`
		CrunCheckpoint string `json:"run.oci.crun.checkpoint.enabled"`
	} `json:"annotations"`
}

// features asks the runtime; one that has no such command (crun before 1.8.3) is judged by its version.
func (r *Runtime) features(ctx context.Context, scratch string) (Features, error) {
	out, err := r.output(ctx, scratch, "--version")
	if err != nil {
		return Features{}, fmt.Errorf("ask for version: %w", err)
	}
	f := parseVersion(string(out))
	answer, err := r.output(ctx, scratch, "features")
	var refused *CommandError
	if err != nil && !errors.As(err, &refused) {
		return f, fmt.Errorf("ask for features: %w", err)
	}
	if err == nil {
		if err := f.apply(answer); err != nil {
			return f, err
		}
	}
	if !kernelAtLeast(5, 12) { // mount_setattr(2)
		f.RecursiveReadOnly = false
	}
	return f, nil
}

func (f *Features) apply(answer []byte) error {
	var a featuresAnswer
	if err := json.Unmarshal(answer, &a); err != nil {
		return fmt.Errorf("parse features: %w", err)
	}
	if a.OCIVersionMax != "" {
		f.OCIVersion = a.OCIVersionMax
	}
	f.MountOptions = a.MountOptions
	f.RecursiveReadOnly = slices.Contains(a.MountOptions, "rro")
	f.Checkpoint = f.Checkpoint || a.Annotations.RuncCheckpoint == "true" || a.Annotations.CrunCheckpoint == "true"
	return nil
}

// parseVersion reads what --version prints: "runc version 1.1.5", "spec: 1.0.2-dev".
func parseVersion(text string) Features {
	var f Features
	var crun bool
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, version, found := strings.Cut(line, " version "); found && f.Version == "" {
			f.Program, f.Version = name, strings.TrimSpace(version)
			crun, f.Sandboxing = name == "crun", name == "runsc"
		}
		if spec, found := strings.CutPrefix(line, "spec:"); found {
			f.OCIVersion = strings.TrimSpace(spec)
		}
		// crun lists what it was built with.
		f.Checkpoint = f.Checkpoint || strings.HasPrefix(line, "+") && slices.Contains(strings.Fields(line), "+CRIU")
	}
	// crun's changelog: recursive mount options since 1.4.
	if crun {
		f.RecursiveReadOnly = versionAtLeast(f.Version, 1, 4)
	}
	return f
}

func versionAtLeast(version string, major, minor int) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	gotMajor, err1 := strconv.Atoi(parts[0])
	gotMinor, err2 := strconv.Atoi(strings.TrimRight(parts[1], "+-abcdefghijklmnopqrstuvwxyz"))
	if err1 != nil || err2 != nil {
		return false
	}
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}

func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	return versionAtLeast(unix.ByteSliceToString(u.Release[:]), major, minor)
}

// tryRun runs a probe container, which must end with 0.
func (r *Runtime) tryRun(ctx context.Context, t *probecontainer.Container, spec *specs.Spec) error {
	if err := t.Write(spec); err != nil {
		return err
	}
	return r.do(ctx, "run", t.Dir, t.Bundle(), []string{"run", "--bundle", t.Bundle(), t.ID}, Stdio{})
}

func withUserNamespace(s *specs.Spec) *specs.Spec {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 1 << 16, Size: 1 << 16}}
	s.Linux.GIDMappings = s.Linux.UIDMappings
	return s
}
