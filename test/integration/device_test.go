package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// node makes a device node on the host.
func node(t *testing.T, path string, major, minor uint32) {
	t.Helper()
	write(t, filepath.Join(filepath.Dir(path), "note"), "no device")
	if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))); err != nil {
		t.Fatalf("make device node %s: %v", path, err)
	}
}

// TestDevices: a container gets the device behind a link, all those beneath a directory, and no more rights than asked
// for; the kernel enforces them. A privileged one may do anything with them.
func TestDevices(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		dir := t.TempDir()
		node(t, filepath.Join(dir, "bus", "null"), 1, 3)
		node(t, filepath.Join(dir, "bus", "001", "kmsg"), 1, 11)
		if err := unix.Symlink(filepath.Join(dir, "bus", "001", "kmsg"), filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		device := func(container, host, permissions string) func(*runtimeapi.ContainerConfig) {
			return func(c *runtimeapi.ContainerConfig) {
				c.Devices = append(c.Devices, &runtimeapi.Device{ContainerPath: container, HostPath: host, Permissions: permissions})
			}
		}
		p := n.RunPod()
		c := p.Start([]string{"sleep", "1000"}, device("/dev/bus", filepath.Join(dir, "bus"), "rw"), device("/dev/one", filepath.Join(dir, "link"), "r"))
		equal(t, "nodes", c.Output("sh", "-c", "find /dev/bus /dev/one | sort | xargs stat -c '%n %t:%T' | grep -v ' 0:0'"),
			"/dev/bus/001/kmsg 1:b\n/dev/bus/null 1:3\n/dev/one 1:b")
		// Reading the kernel's log takes a capability too.
		writes := p.Start([]string{"sleep", "1000"}, device("/dev/one", filepath.Join(dir, "link"), "w"))
		equal(t, "writing to what may be written to", writes.Output("sh", "-c", ": >/dev/one && echo opened"), "opened")
		reads := p.Start([]string{"sleep", "1000"}, device("/dev/one", filepath.Join(dir, "link"), "r"))
		if answer := reads.Exec("sh", "-c", ": >/dev/one"); answer.GetExitCode() == 0 {
			t.Error("a device was opened for writing that may be read only")
		}
		if answer := p.Start([]string{"sleep", "1000"}).Exec("sh", "-c", "mknod /k c 1 11 && : >/k"); answer.GetExitCode() == 0 {
			t.Error("a device was opened that was not asked for")
		}
		free := n.RunPod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }).
			Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Privileged = true },
				device("/dev/mine", filepath.Join(dir, "link"), "r"))
		equal(t, "privileged", free.Output("sh", "-c", ": >/dev/mine && test -c /dev/kmsg && mknod /k c 1 11 && : >/k && echo all"), "all")
		for host, reason := range map[string]string{
			filepath.Join(dir, "none"): "does not exist", filepath.Join(dir, "bus", "note"): "is not a device node",
		} {
			_, err := p.Create(n.ContainerConfig([]string{"true"}, device("/dev/x", host, "rwm")))
			wantError(t, err, codes.InvalidArgument, "devices[0].host_path", reason)
		}
	})
}

// TestMountOptions: what a request adds to a mount holds, in place of the opposite.
func TestMountOptions(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "run"), "#!/bin/sh\necho ran\n")
		if err := unix.Chmod(filepath.Join(dir, "run"), 0o755); err != nil {
			t.Fatal(err)
		}
		mount := func(path string, readonly bool, options ...string) func(*runtimeapi.ContainerConfig) {
			return func(c *runtimeapi.ContainerConfig) {
				c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: dir, ContainerPath: path, Readonly: readonly, MountOptions: options})
			}
		}
		p := n.RunPod()
		c := p.Start([]string{"sleep", "1000"}, mount("/plain", false), mount("/bound", true, "noexec", "nodev", "nosuid"),
			mount("/last", false, "noexec", "exec", "ro"))
		equal(t, "without options", c.Output("/plain/run"), "ran")
		equal(t, "the last of two opposites", c.Output("/last/run"), "ran")
		if answer := c.Exec("sh", "-c", "/bound/run"); answer.GetExitCode() == 0 {
			t.Error("a program ran from a mount with noexec")
		}
		if answer := c.Exec("touch", "/last/x"); answer.GetExitCode() == 0 {
			t.Error("a mount with the option ro was written to")
		}
		options := c.Output("sh", "-c", "grep ' /bound ' /proc/self/mountinfo | cut -d' ' -f6")
		for _, want := range []string{"ro", "noexec", "nodev", "nosuid"} {
			if !strings.Contains(","+options+",", ","+want+",") {
				t.Errorf("mount has the options %s, want %s among them", options, want)
			}
		}
		for option, readonly := range map[string]bool{"size=1m": false, "rw": true} {
			_, err := p.Create(n.ContainerConfig([]string{"true"}, mount("/m", readonly, option)))
			wantError(t, err, codes.InvalidArgument, "mounts[0].mount_options", option)
		}
		answer, err := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{})
		if err != nil || !answer.GetFeatures().GetMountOptions() {
			t.Errorf("features are %v, %v, want mount_options", answer.GetFeatures(), err)
		}
	})
}
