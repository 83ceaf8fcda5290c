// Package probecontainer makes the probe containers that show whether a runtime handler works. Each has a directory whose
// name is part of everything that it creates on the host: command lines, cgroup, mounts. So a later daemon that finds the
// directory can clean up after a probe that was killed.
package probecontainer

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/directory"
	"github.com/berth-runtime/berth/internal/ociruntime/staticelf"
	"github.com/berth-runtime/berth/internal/proc"
)

const (
	// prefix begins the name of every probe container.
	prefix = "berth-probe-"
	// nameLength is the randomness of a name: 65 bits. More would make the paths of sockets long.
	nameLength = 13
	// rootfsSize bounds what is in the container's root file system.
	rootfsSize = "64k"
)

// Container is one probe container.
type Container struct {
	// ID is that of the container, the name of its cgroup and that of Dir.
	ID string
	// Dir is where all its files are. Its path must be in the command line of every process that the probe container
	// starts outside of the container.
	Dir string
}

// New makes a probe container in a directory of parent, which is made if it is missing. Nothing is on the host before. The caller
// ends it with Close; if the program dies before, Sweep does.
func New(parent string) (*Container, error) {
	if _, err := directory.Close(parent, directory.Group); err != nil {
		return nil, fmt.Errorf("make directory for probe containers: %w", err)
	}
	t, err := of(parent, prefix+strings.ToLower(rand.Text()[:nameLength]))
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(t.Dir, directory.Private); err != nil {
		return nil, fmt.Errorf("make directory of probe container: %w", err)
	}
	return t, nil
}

// of is the probe container with a name. Its directory is as the kernel calls it in its table of mounts.
func of(parent, name string) (*Container, error) {
	parent, err := filepath.EvalSymlinks(parent)
	if err != nil {
		return nil, fmt.Errorf("find directory of probe containers: %w", err)
	}
	return &Container{ID: name, Dir: filepath.Join(parent, name)}, nil
}

// Bundle is the directory of the OCI bundle, with the name of the container, as shims expect it.
func (t *Container) Bundle() string { return filepath.Join(t.Dir, t.ID) }

// Root is where the OCI runtime keeps its state: its own, apart from all other containers.
func (t *Container) Root() string { return filepath.Join(t.Dir, "root") }

// Spec is a container whose only program exits with 0.
func (t *Container) Spec(ociVersion string, systemd bool) *specs.Spec {
	if ociVersion == "" {
		ociVersion = "1.0.0"
	}
	s := &specs.Spec{
		Version: ociVersion,
		Process: &specs.Process{Args: []string{"/exit"}, Cwd: "/", NoNewPrivileges: true, OOMScoreAdj: oomScore()},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
		},
		Linux: &specs.Linux{CgroupsPath: "/" + t.ID},
	}
	if systemd {
		s.Linux.CgroupsPath = systemdSlice + ":" + systemdPrefix + ":" + t.ID
	}
	for _, kind := range []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace,
	} {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind})
	}
	return s
}

// oomScore is 0, or what the probe inherits if that is higher: lowering it needs a capability.
func oomScore() *int {
	own, err := proc.OwnOOMScore()
	if err != nil {
		return nil
	}
	score := max(0, own)
	return &score
}

// Write makes the bundle. Its root file system is mounted, as those of pods are: where the directory is, programs may be
// forbidden to run.
func (t *Container) Write(spec *specs.Spec) error {
	if err := t.write(spec); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

func (t *Container) write(spec *specs.Spec) error {
	program, err := staticelf.Exit()
	if err != nil {
		return err
	}
	rootfs := filepath.Join(t.Bundle(), "rootfs")
	if gid := rootGroup(spec); gid != 0 {
		for _, dir := range []string{filepath.Dir(t.Dir), t.Dir, t.Bundle()} {
			if err := directory.Admit(dir, gid); err != nil {
				return err
			}
		}
	}
	if err := os.MkdirAll(t.Bundle(), directory.Private); err != nil {
		return err
	}
	if err := os.Mkdir(rootfs, directory.Private); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", rootfs, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size="+rootfsSize); err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}
	for _, dir := range []string{"proc", "dev", "sys"} {
		if err := os.Mkdir(filepath.Join(rootfs, dir), 0o755); err != nil {
			return err
		}
	}
	//nolint:gosec // it is a program
	if err := os.WriteFile(filepath.Join(rootfs, "exit"), program, 0o755); err != nil {
		return err
	}
	config, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	return os.WriteFile(filepath.Join(t.Bundle(), "config.json"), config, 0o600)
}

// rootGroup is the group on the host of root of the container: an OCI runtime finds its way as root of a user namespace.
func rootGroup(spec *specs.Spec) uint32 {
	if len(spec.Linux.GIDMappings) == 0 {
		return 0
	}
	return spec.Linux.GIDMappings[0].HostID
}

// Leaves notes a file elsewhere that the probe is about to leave behind. It is removed at the end.
func (t *Container) Leaves(path string) error {
	f, err := os.OpenFile(t.leavings(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("record what the probe leaves: %w", err)
	}
	if _, err := f.WriteString(path + "\n"); err != nil {
		return errors.Join(fmt.Errorf("record what the probe leaves: %w", err), f.Close())
	}
	return f.Close()
}

// leavings is the file with the paths given to Leaves.
func (t *Container) leavings() string { return filepath.Join(t.Dir, "leavings") }

// Close removes the probe container: none of its processes, cgroups, mounts and files is left. That has a deadline of its own, not
// the one of ctx, which may have ended the probe.
func (t *Container) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return t.undo(ctx)
}

// Sweep removes the probe containers in parent whose program was killed.
func Sweep(ctx context.Context, parent string) error {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for probe containers: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		t, err := of(parent, e.Name())
		if err == nil {
			err = t.Close(ctx)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
