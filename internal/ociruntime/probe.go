package ociruntime

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// probeTimeout bounds a probe whose context has no deadline.
	probeTimeout = 30 * time.Second
	// cleanupTimeout bounds the removal of a probe's container.
	cleanupTimeout = 10 * time.Second
)

// remedies pair a part of a runtime's complaint with what the administrator can do.
var remedies = []struct{ complaint, remedy string }{
	{"hugetlb", "mount the controller as v1: mount -t cgroup -o hugetlb cgroup /sys/fs/cgroup/hugetlb"},
	{"cgroups in hybrid mode", "mount the controllers that sit on the v2 hierarchy (often hugetlb) as v1, or use runc"},
	{"unknown version specified", "install a newer version of the runtime"},
	{"oom_score_adj", "give the daemon CAP_SYS_RESOURCE"},
	{"operation not permitted", "give the daemon CAP_SYS_ADMIN, or allow the system call in the filter it runs under"},
	{"no space left on device", "make room, or raise the limit on cgroups or namespaces"},
}

// Probe finds out what a runtime supports, and runs a throw-away container with
// it. The error says why it does not work on this host and, where known, what
// would help. Nothing of the container is left in either case.
func Probe(ctx context.Context, h Handler) (Features, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, probeTimeout)
		defer cancel()
	}
	scratch, err := os.MkdirTemp("", "berth-probe-")
	if err != nil {
		return Features{}, fmt.Errorf("probe runtime handler %q: %w", h.Name, err)
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	// The root is the probe's own, so that it meets no container of anybody's.
	h.Root = filepath.Join(scratch, "root")
	r, err := New(h, Local{})
	if err != nil {
		return Features{}, err
	}
	features, err := r.features(ctx, scratch)
	if err != nil {
		return Features{}, fmt.Errorf("probe runtime handler %q: %w", h.Name, err)
	}
	if err := r.tryRun(ctx, scratch, features.OCIVersion, false); err != nil {
		return features, fmt.Errorf("probe runtime handler %q: %w%s", h.Name, err, remedy(err))
	}
	if err := r.tryRun(ctx, scratch, features.OCIVersion, true); err != nil {
		features.UserNamespacesProblem = err.Error()
	} else {
		features.UserNamespaces = true
	}
	return features, nil
}

func remedy(err error) string {
	for _, r := range remedies {
		if strings.Contains(strings.ToLower(err.Error()), r.complaint) {
			return " (remedy: " + r.remedy + ")"
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
			f.Version = strings.TrimSpace(version)
			crun = name == "crun"
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

// tryRun runs a container whose only program is built in and exits with 0, in a user namespace of its own if asked to.
func (r *Runtime) tryRun(ctx context.Context, scratch, ociVersion string, user bool) error {
	bundle := filepath.Join(scratch, "bundle")
	id := "berth-probe-" + strings.ToLower(rand.Text())
	if err := WriteTrial(bundle, r.probeSpec(id, ociVersion, user)); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	// Root of a user namespace has to find its way.
	if err := os.Chmod(scratch, 0o711); err != nil { //nolint:gosec // nobody can read what is in there
		return fmt.Errorf("write bundle: %w", err)
	}
	err := r.do(ctx, "run", scratch, bundle, []string{"run", "--bundle", bundle, id}, Stdio{})
	if err == nil {
		return removeCgroup(id) // the rest was deleted when it ended, as run was in the foreground
	}
	// The caller's deadline may be what ended the run; the clean-up has its own.
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if undoErr := r.Delete(undo, scratch, id); undoErr != nil && !errdefs.IsNotFound(undoErr) {
		return errors.Join(err, undoErr, removeCgroup(id))
	}
	return errors.Join(err, removeCgroup(id))
}

func (r *Runtime) probeSpec(id, ociVersion string, user bool) *specs.Spec {
	if ociVersion == "" {
		ociVersion = "1.0.0"
	}
	cgroup := "/" + id
	if r.handler.SystemdCgroup {
		cgroup = "system.slice:berth:" + id
	}
	var namespaces []specs.LinuxNamespace
	for _, kind := range []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace,
	} {
		namespaces = append(namespaces, specs.LinuxNamespace{Type: kind})
	}
	linux := &specs.Linux{CgroupsPath: cgroup, Namespaces: namespaces}
	if user {
		linux.Namespaces = append(namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 1 << 16, Size: 1 << 16}}
		linux.GIDMappings = linux.UIDMappings
	}
	return &specs.Spec{
		Version: ociVersion,
		Process: &specs.Process{Args: []string{"/exit"}, Cwd: "/", NoNewPrivileges: true},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
		},
		Linux: linux,
	}
}
