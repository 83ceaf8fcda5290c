// Package overlay mounts directories over each other, with the owners that their files have on disk or with those of a user
// namespace.
package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/internal/namespace/idmap"
)

// maxData is how much of the options mount(2) takes: a page with a zero.
const maxData = 4095

// Mount mounts an overlay at target of lower layers, topmost first; flags and more are those of mount(2) beside. With a user
// namespace the files of the layers have its mapping, without one (nil) they are as on disk.
//
// Layers whose names together are longer than a page are named as they are called in the directory that they share. If
// that is not enough, the error is [errdefs.ErrFailedPrecondition].
func Mount(target string, layers []string, flags uintptr, more []string, user *os.File) error {
	if user != nil {
		return mountMapped(target, layers, flags, more, user)
	}
	if data := options(layers, more); len(data) <= maxData {
		return mount(target, flags, data)
	}
	base, data, err := shortened(layers, more)
	if err != nil {
		return err
	}
	return namespace.WithOwnDirectory(base, func() error { return mount(target, flags, data) })
}

// mountMapped mounts layers with the mapping of a user namespace. An overlay as a whole cannot be idmapped (it still cannot
// in Linux 6.18), its layers can since Linux 5.19.
//
// The kernel takes a layer only from a mount that the caller has in its mount table. The mapped one is made in the table of
// a thread, which goes with the thread: a crash leaves nothing of it.
func mountMapped(target string, layers []string, flags uintptr, more []string, user *os.File) error {
	base, data, err := shortened(layers, more)
	if err != nil {
		return err
	}
	var overlay *os.File
	err = namespace.WithOwnMounts(func() (err error) {
		if err := attachMapped(base, target, user); err != nil {
			return err
		}
		if err := unix.Chdir(target); err != nil { // that of the thread
			return err
		}
		if err := mount(target, flags, data); err != nil {
			return err
		}
		overlay, err = idmap.Copy(target, false)
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(idmap.Attach(overlay, target), overlay.Close())
}

func mount(target string, flags uintptr, data string) error {
	if err := unix.Mount("overlay", target, "overlay", flags, data); err != nil {
		return &os.PathError{Op: "mount overlay", Path: target, Err: err}
	}
	return nil
}

func options(layers, more []string) string {
	return strings.Join(append([]string{"lowerdir=" + strings.Join(layers, ":")}, more...), ",")
}

// shortened is the options for who is in the directory base, which fit into a page.
func shortened(layers, more []string) (base, data string, err error) {
	base, names, err := commonDir(layers)
	if err != nil {
		return "", "", err
	}
	if data = options(names, more); len(data) > maxData {
		return "", "", fmt.Errorf("mount of %d layers: its options are longer than a page: %w", len(layers), errdefs.ErrFailedPrecondition)
	}
	return base, data, nil
}

// attachMapped mounts dir at target, mapped.
func attachMapped(dir, target string, user *os.File) error {
	tree, err := idmap.Copy(dir, false)
	if err != nil {
		return err
	}
	err = idmap.Map(tree, user)
	if err == nil {
		err = idmap.Attach(tree, target)
	}
	return errors.Join(err, tree.Close())
}

// commonDir splits directories into the one that they all are in and their names in there. No name has a character that
// means something to an overlay.
func commonDir(dirs []string) (base string, names []string, err error) {
	base = filepath.Dir(dirs[0])
	for _, dir := range dirs[1:] {
		for base != "/" && !strings.HasPrefix(dir, base+"/") {
			base = filepath.Dir(base)
		}
	}
	for _, dir := range dirs {
		name, err := filepath.Rel(base, dir)
		if err != nil {
			return "", nil, err
		}
		if strings.ContainsAny(name, `:,\`) {
			return "", nil, fmt.Errorf("layer %s: its path cannot be given to an overlay: %w", dir, errdefs.ErrFailedPrecondition)
		}
		names = append(names, name)
	}
	return base, names, nil
}

// TryMapped is nil if this process can make user namespaces and mount overlays whose layers, in the file system of dir, have their
// mapping; the error says what cannot be done. It makes dir and removes it with all that is in there.
func TryMapped(dir string) error {
	err := os.RemoveAll(dir) // of a process that was killed
	if err == nil {
		err = try(dir)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// try shows our directories with another owner.
func try(dir string) error {
	layers := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	target := filepath.Join(dir, "target")
	for _, made := range append(layers, target) {
		if err := os.MkdirAll(made, 0o700); err != nil {
			return err
		}
	}
	const other = 1 << 16
	ids := []specs.LinuxIDMapping{{HostID: other, Size: 1 << 16}}
	user, err := namespace.NewUser(ids, ids)
	if err != nil {
		return err
	}
	err = namespace.WithOwnMounts(func() error {
		if err := Mount(target, layers, unix.MS_RDONLY, nil, user); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(target, &st); err != nil {
			return err
		}
		if st.Uid != other || st.Gid != other {
			return fmt.Errorf("files of user 0 are shown as those of user %d: %w", st.Uid, errdefs.ErrFailedPrecondition)
		}
		return nil
	})
	return errors.Join(err, user.Close())
}
