package spec

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
)

// TestWritableCgroups: the tree is writable for privileged containers, and for others of a handler that allows it if they have a
// cgroup namespace. A mount without one repeats the options that it would take from the host otherwise.
func TestWritableCgroups(t *testing.T) {
	for _, test := range []struct {
		name                 string
		mode                 cgroup.Mode
		writable, privileged bool
		want                 string
	}{
		{"v2", cgroup.V2, false, false, "nosuid noexec nodev relatime ro"},
		{"v2-writable", cgroup.V2, true, false, "nosuid noexec nodev relatime rw"},
		{"v2-privileged", cgroup.V2, false, true, "nosuid noexec nodev relatime rw nsdelegate"},
		{"v1-writable", cgroup.V1, true, false, "nosuid noexec nodev relatime ro"},
		{"v1-privileged", cgroup.V1, false, true, "nosuid noexec nodev relatime rw"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := testInput(t)
			in.Host = testHost(test.mode)
			if test.mode == cgroup.V2 {
				in.Host.CgroupOptions = []string{"nsdelegate"}
			}
			in.CgroupWritable = test.writable
			in.Config.Linux.SecurityContext.Privileged = test.privileged
			in.Pod.Linux.SecurityContext.Privileged = test.privileged
			out := build(t, in)
			i := slices.IndexFunc(out.Spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/sys/fs/cgroup" })
			if i < 0 {
				t.Fatal("no cgroups are mounted")
			}
			equal(t, "options", out.Spec.Mounts[i].Options, strings.Fields(test.want))
		})
	}
}

// TestPrivilegedDevices: a handler decides whether privileged containers get the devices of the host, and whether they may use
// others than those that the request lists.
func TestPrivilegedDevices(t *testing.T) {
	for _, test := range []struct {
		name                 string
		without, all         bool
		hostNodes, allowsAll bool
	}{{"host", false, false, true, true}, {"without", true, false, false, false}, {"without-but-all", true, true, false, true}} {
		t.Run(test.name, func(t *testing.T) {
			in := testInput(t)
			in.NoHostDevices, in.AllDevices = test.without, test.all
			in.Config.Linux.SecurityContext.Privileged, in.Pod.Linux.SecurityContext.Privileged = true, true
			in.Config.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/mine", Permissions: "r"}}
			linux := build(t, in).Spec.Linux
			if has := slices.ContainsFunc(linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == "/dev/full" }); has != test.hostNodes {
				t.Errorf("has devices of the host: %v, want %v", has, test.hostNodes)
			}
			if !slices.ContainsFunc(linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == "/dev/mine" }) {
				t.Error("the device of the request is missing")
			}
			if all := linux.Resources.Devices[0].Allow; all != test.allowsAll {
				t.Errorf("may use all devices: %v, want %v", all, test.allowsAll)
			}
			last := linux.Resources.Devices[len(linux.Resources.Devices)-1]
			if !test.allowsAll && (!last.Allow || last.Access != "r" || *last.Major != 1 || *last.Minor != 3) {
				t.Errorf("the last rule is %+v, want that the device of the request may be read", last)
			}
		})
	}
}
