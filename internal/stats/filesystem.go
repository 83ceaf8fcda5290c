package stats

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/text"
)

// blockDevices has a link for every block device, by number.
const blockDevices = "/sys/dev/block"

// Filesystem is the filesystem that a path is on.
type Filesystem struct {
	// Device is the block device ("/dev/vda1"); where there is none, as with
	// some filesystems of many devices, what is mounted.
	Device string
	// Disk is the device that I/O is counted for: that which a partition is
	// on, else the device itself.
	Disk Device
	// Bytes and Inodes are how much there is in all.
	Bytes, Inodes, InodesFree uint64
}

// Device is a block device.
type Device struct {
	Name         string
	Major, Minor uint64
}

// ReadFilesystem describes the filesystem that path is on.
func ReadFilesystem(path string) (Filesystem, error) {
	var size unix.Statfs_t
	var node unix.Stat_t
	if err := unix.Statfs(path, &size); err != nil {
		return Filesystem{}, fmt.Errorf("measure filesystem of %s: %w", path, err)
	}
	if err := unix.Stat(path, &node); err != nil {
		return Filesystem{}, fmt.Errorf("find device of %s: %w", path, err)
	}
	f := Filesystem{Bytes: size.Blocks * uint64(size.Bsize), Inodes: size.Files, InodesFree: size.Ffree}
	f.Disk = diskOf(uint64(unix.Major(node.Dev)), uint64(unix.Minor(node.Dev)))
	if f.Device = DeviceName(uint64(unix.Major(node.Dev)), uint64(unix.Minor(node.Dev))); f.Device != "" {
		return f, nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return Filesystem{}, fmt.Errorf("find mount of %s: %w", path, err)
	}
	longest := -1
	for _, m := range mounts {
		if len(m.Mountpoint) >= longest {
			longest, f.Device = len(m.Mountpoint), text.Clean(m.Source)
		}
	}
	f.Disk.Name = f.Device
	return f, nil
}

// DeviceName returns the path of a block device, "" if there is none of that
// number.
func DeviceName(major, minor uint64) string {
	link, err := os.Readlink(fmt.Sprintf("%s/%d:%d", blockDevices, major, minor))
	if err != nil {
		return ""
	}
	return "/dev/" + text.Clean(filepath.Base(link))
}

// diskOf returns the disk of a partition, and any other device itself.
func diskOf(major, minor uint64) Device {
	device := Device{Name: DeviceName(major, minor), Major: major, Minor: minor}
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("%s/%d:%d", blockDevices, major, minor))
	if err != nil {
		return device
	}
	if _, err := os.Lstat(filepath.Join(dir, "partition")); err != nil {
		return device
	}
	parent := filepath.Dir(dir)
	r := &reader{}
	majorText, minorText, _ := strings.Cut(strings.TrimSpace(r.text(parent, "dev")), ":")
	disk := Device{Name: "/dev/" + filepath.Base(parent), Major: r.parse("dev", majorText), Minor: r.parse("dev", minorText)}
	if r.err != nil {
		return device
	}
	return disk
}
