package vm

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-runtime/berth/test/cache"
	"github.com/berth-runtime/berth/test/command"
)

const (
	// release is the Debian with Linux 6.1: old enough to lack what Berth uses of newer kernels, and in wide use.
	release = "bookworm"
	// rootSize is the size of the first disk. It is sparse.
	rootSize = "3G"
)

// packages are what is installed beside Debian's smallest system.
var packages = []string{
	"linux-image-cloud-amd64", "systemd", "systemd-sysv", "udev", "dbus", "kmod", "procps",
	// What Berth and its tests run.
	"runc", "crun", "containernetworking-plugins", "nftables", "iptables", "iproute2", "docker-registry", "busybox-static", "criu",
	// What critest runs.
	"apparmor", "sudo",
	"selinux-policy-default", "policycoreutils",
}

// masked are the units which only cost time.
var masked = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
	"docker-registry.service", "getty@tty1.service", "serial-getty@ttyS0.service", "systemd-logind.service",
	"selinux-autorelabel.service", "selinux-autorelabel-mark.service",
}

// overlay is laid over Debian's files.
//
//go:embed overlay
var overlay embed.FS

// root is the Debian of the machine.
type root struct {
	// disk is an image of its file system, kernel and initrd are copies from its /boot.
	disk, kernel, initrd string
}

// makeRoot makes the Debian of the machine, or takes it from the cache.
func makeRoot(ctx context.Context, c cache.Cache) (root, error) {
	mirror, err := debianMirror(ctx)
	if err != nil {
		return root{}, err
	}
	files, err := overlayText()
	if err != nil {
		return root{}, err
	}
	recipe := strings.Join([]string{release, mirror, rootSize, strings.Join(packages, " "), strings.Join(masked, " "), files}, "\n")
	dir, err := c.Get("debian", recipe, func(dir string) error {
		tree := filepath.Join(dir, "tree")
		if err := install(ctx, tree, mirror); err != nil {
			return err
		}
		if err := takeKernel(tree, dir); err != nil {
			return err
		}
		if _, err := command.Run(ctx, dir, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, "root.ext4", rootSize); err != nil {
			return err
		}
		return os.RemoveAll(tree)
	})
	return root{disk: filepath.Join(dir, "root.ext4"), kernel: filepath.Join(dir, "vmlinuz"), initrd: filepath.Join(dir, "initrd.img")}, err
}

// debianMirror is where apt gets packages of Debian from on this machine.
func debianMirror(ctx context.Context) (string, error) {
	list, err := command.Run(ctx, "", "apt-get", "indextargets", "--format", "$(COMPONENT) $(CODENAME) $(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return "", fmt.Errorf("find a Debian mirror: %w", err)
	}
	this, err := command.Run(ctx, "", "sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME")
	if err != nil {
		return "", fmt.Errorf("find out which Debian this is: %w", err)
	}
	for line := range strings.Lines(list) {
		if uri, ok := strings.CutPrefix(strings.TrimSpace(line), "main "+this+" "); ok {
			return uri, nil
		}
	}
	return "", fmt.Errorf("find a Debian mirror: apt's sources have no %s main", this)
}

// install puts a Debian into a directory.
func install(ctx context.Context, tree, mirror string) error {
	argv := []string{"debootstrap", "--variant=minbase", "--include=" + strings.Join(packages, ","), release, tree, mirror}
	if _, err := command.Run(ctx, "", argv...); err != nil {
		return err
	}
	if err := eachOverlay(func(name string, data []byte) error {
		return os.WriteFile(filepath.Join(tree, name), data, 0o644)
	}); err != nil {
		return fmt.Errorf("configure Debian: %w", err)
	}
	units := filepath.Join(tree, "etc/systemd/system")
	for _, unit := range masked {
		if err := os.Symlink("/dev/null", filepath.Join(units, unit)); err != nil {
			return fmt.Errorf("mask %s: %w", unit, err)
		}
	}
	if err := os.Symlink("../berth-tests.service", filepath.Join(units, "multi-user.target.wants/berth-tests.service")); err != nil {
		return fmt.Errorf("enable the tests: %w", err)
	}
	// The mount point of the other disk, and what fills the root file system for nothing.
	if err := os.Mkdir(filepath.Join(tree, Mountpoint), 0o755); err != nil {
		return fmt.Errorf("make the mount point of the tests: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(tree, "var/cache/apt")); err != nil {
		return fmt.Errorf("remove the packages that are installed: %w", err)
	}
	return label(ctx, tree)
}

// label adds the types of containers to SELinux's policy and gives every file its label, which a kernel without SELinux keeps
// as it keeps any attribute.
func label(ctx context.Context, tree string) error {
	const script = `mount -t proc proc "$0/proc" &&
chroot "$0" semodule -n -i /usr/share/selinux/default/containers.cil &&
exec chroot "$0" setfiles -e /proc /etc/selinux/default/contexts/files/file_contexts /`
	_, err := command.Run(ctx, "", "unshare", "--mount", "sh", "-c", script, tree) // it reaches files through /proc
	return err
}

// takeKernel moves kernel and initrd out of the tree.
func takeKernel(tree, dir string) error {
	for _, name := range []string{"vmlinuz", "initrd.img"} {
		found, err := filepath.Glob(filepath.Join(tree, "boot", name+"-*"))
		if err == nil && len(found) != 1 {
			err = fmt.Errorf("found %d of them", len(found))
		}
		if err != nil {
			return fmt.Errorf("take %s: %w", name, err)
		}
		if err := os.Rename(found[0], filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("take %s: %w", name, err)
		}
	}
	return nil
}

// eachOverlay visits the files that are laid over Debian's.
func eachOverlay(visit func(name string, data []byte) error) error {
	return fs.WalkDir(overlay, "overlay", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := overlay.ReadFile(path)
		if err != nil {
			return err
		}
		return visit(strings.TrimPrefix(path, "overlay/"), data)
	})
}

// overlayText is all that overlay holds, to notice a change.
func overlayText() (string, error) {
	var text strings.Builder
	err := eachOverlay(func(name string, data []byte) error {
		fmt.Fprintf(&text, "%s\n%s\n", name, data)
		return nil
	})
	return text.String(), err
}
