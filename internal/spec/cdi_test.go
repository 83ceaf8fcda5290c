package spec

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCDI: devices that are asked for by name, in the field or by annotation, are added once each, in the order of the
// request; what they change is in the result, except nodes in a /dev that the request mounts.
func TestCDI(t *testing.T) {
	in := testInput(t)
	in.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v.com/c=b"}, {Name: "v.com/c=a"}, {Name: "v.com/c=b"}}
	in.Config.Annotations = map[string]string{
		"cdi.k8s.io/y": "v.com/c=e", "cdi.k8s.io/x": "v.com/c=a,v.com/c=d", "example.com/cdi": "v.com/c=no",
	}
	var asked []string
	in.InjectCDI = func(result *specs.Spec, names []string) error {
		asked = names
		result.Process.User.AdditionalGids = append(result.Process.User.AdditionalGids, 4711)
		result.Linux.Devices = append(result.Linux.Devices, specs.LinuxDevice{Path: "/dev/gpu", Type: "c"})
		return nil
	}
	out := build(t, in)
	equal(t, "devices", asked, []string{"v.com/c=b", "v.com/c=a", "v.com/c=d", "v.com/c=e"})
	groups := out.User.GetLinux().GetSupplementalGroups()
	if len(groups) == 0 || groups[len(groups)-1] != 4711 {
		t.Errorf("groups in the status: got %v, want the one that a device brought too", groups)
	}
	if n := len(out.Spec.Linux.Devices); n == 0 {
		t.Error("the device node is not in the spec")
	}
	in.Config.Mounts = append(in.Config.Mounts, &runtimeapi.Mount{ContainerPath: "/dev", HostPath: "/dev"})
	if devices := build(t, in).Spec.Linux.Devices; len(devices) != 0 {
		t.Errorf("device nodes in a /dev of the host: got %v", devices)
	}
}
