package spec

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/privilege"
)

func usernsOf(mode runtimeapi.NamespaceMode, uid, gid *runtimeapi.IDMapping) *runtimeapi.UserNamespace {
	return &runtimeapi.UserNamespace{Mode: mode, Uids: []*runtimeapi.IDMapping{uid}, Gids: []*runtimeapi.IDMapping{gid}}
}

// TestUserNamespaceRefusals: each thing that is wrong with a user namespace is refused with the field that is wrong.
func TestUserNamespaceRefusals(t *testing.T) {
	good := &runtimeapi.IDMapping{HostId: 100000, Length: 65536}
	other := &runtimeapi.IDMapping{HostId: 200000, Length: 65536}
	pod := func(options *runtimeapi.UserNamespace) error {
		p := testInput(t).Pod
		p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = options
		return ValidateSandbox(p)
	}
	container := func(inPod, own *runtimeapi.UserNamespace) error {
		in := testInput(t)
		in.Pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = inPod
		sc(&in).NamespaceOptions = &runtimeapi.NamespaceOption{UsernsOptions: own}
		return Validate(in.Config, in.Pod)
	}
	mount := func(m *runtimeapi.Mount, inPod *runtimeapi.UserNamespace) error {
		in := testInput(t)
		in.Pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = inPod
		m.ContainerPath = "/m"
		in.Config.Mounts = []*runtimeapi.Mount{m}
		return Validate(in.Config, in.Pod)
	}
	const options = "linux.security_context.namespace_options.userns_options."
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"container mode":  {pod(usernsOf(modeContainer, good, good)), options + "mode \"CONTAINER\""},
		"target mode":     {pod(usernsOf(modeTarget, good, good)), options + "mode \"TARGET\""},
		"no mapping":      {pod(&runtimeapi.UserNamespace{}), options + "uids"},
		"only users":      {pod(&runtimeapi.UserNamespace{Uids: []*runtimeapi.IDMapping{good}}), options + "gids"},
		"two mappings":    {pod(&runtimeapi.UserNamespace{Uids: []*runtimeapi.IDMapping{good, other}, Gids: []*runtimeapi.IDMapping{good}}), "exactly one"},
		"no root":         {pod(usernsOf(modePod, &runtimeapi.IDMapping{ContainerId: 1, HostId: 5, Length: 9}, good)), options + "uids"},
		"empty":           {pod(usernsOf(modePod, good, &runtimeapi.IDMapping{HostId: 5})), options + "gids"},
		"too long":        {pod(usernsOf(modePod, &runtimeapi.IDMapping{HostId: 1 << 31, Length: 1 << 31}, good)), options + "uids"},
		"unequal":         {pod(usernsOf(modePod, good, other)), options + "gids"},
		"node with ids":   {pod(usernsOf(modeNode, good, good)), options + "uids"},
		"own without pod": {container(nil, usernsOf(modePod, good, good)), options + "mode \"POD\""},
		"none with pod":   {container(usernsOf(modePod, good, good), &runtimeapi.UserNamespace{Mode: modeNode}), options + "mode \"NODE\""},
		"another than the pod": {
			container(usernsOf(modePod, good, good), usernsOf(modePod, other, other)), options + "uids",
		},
		"mount with half a mapping": {mount(&runtimeapi.Mount{HostPath: "/", UidMappings: []*runtimeapi.IDMapping{good}}, nil), "mounts[0].uidMappings"},
		"mount with an empty mapping": {mount(&runtimeapi.Mount{
			HostPath: "/", UidMappings: []*runtimeapi.IDMapping{{}}, GidMappings: []*runtimeapi.IDMapping{{}},
		}, nil), "mounts[0].uidMappings"},
		"image with another mapping": {mount(&runtimeapi.Mount{
			Image: &runtimeapi.ImageSpec{Image: "i"}, Readonly: true,
			UidMappings: []*runtimeapi.IDMapping{other}, GidMappings: []*runtimeapi.IDMapping{other},
		}, usernsOf(modePod, good, good)), "mounts[0].uidMappings"},
	} {
		if !errdefs.IsInvalidArgument(c.err) || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: got %v, want an invalid argument that contains %q", name, c.err, c.want)
		}
	}
	for name, err := range map[string]error{
		"mode node":    pod(&runtimeapi.UserNamespace{Mode: modeNode}),
		"mode pod":     pod(usernsOf(modePod, good, good)),
		"as the pod":   container(usernsOf(modePod, good, good), usernsOf(modePod, good, good)),
		"none said":    container(usernsOf(modePod, good, good), nil),
		"none at all":  container(nil, &runtimeapi.UserNamespace{Mode: modeNode}),
		"other volume": mount(&runtimeapi.Mount{HostPath: "/", UidMappings: []*runtimeapi.IDMapping{other}, GidMappings: []*runtimeapi.IDMapping{other}}, nil),
	} {
		if err != nil {
			t.Errorf("%s: got %v, want nil", name, err)
		}
	}
}

// TestUserNamespaceKeepsRestrictions: a user namespace cannot mount what the host mounted nosuid without that.
func TestUserNamespaceKeepsRestrictions(t *testing.T) {
	privilege.Root(t)
	in := testInput(t)
	ids := &runtimeapi.IDMapping{HostId: 100000, Length: 65536}
	in.Pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = usernsOf(modePod, ids, ids)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	in.Config.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/host"}}
	out, err := Build(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(out.Spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/host" })
	for _, want := range []string{"nosuid", "nodev", "noexec"} {
		if !slices.Contains(out.Spec.Mounts[i].Options, want) {
			t.Errorf("options of the mount are %v, want %s", out.Spec.Mounts[i].Options, want)
		}
	}
	in.Config.Mounts[0].HostPath = filepath.Dir(in.Rootfs)
	in.Config.Mounts[0].Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	if _, err := Build(t.Context(), in); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "mounts[0].propagation") {
		t.Errorf("bidirectional: got %v, want a failed precondition about the propagation", err)
	}
}

// TestUserNamespaceDevices: a device that has another path in the container than on the host is bound by the latter: an OCI
// runtime would bind the host's device of the former.
func TestUserNamespaceDevices(t *testing.T) {
	in := testInput(t)
	ids := &runtimeapi.IDMapping{HostId: 100000, Length: 65536}
	in.Pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = usernsOf(modePod, ids, ids)
	in.Config.Devices = []*runtimeapi.Device{
		{HostPath: "/dev/zero", ContainerPath: "/dev/kmsg", Permissions: "r"}, {HostPath: "/dev/random", ContainerPath: "/dev/random"},
	}
	out, err := Build(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if d := out.Spec.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/random" {
		t.Errorf("device nodes are %v, want only /dev/random", d)
	}
	i := slices.IndexFunc(out.Spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/kmsg" })
	if i < 0 || out.Spec.Mounts[i].Source != "/dev/zero" || slices.Contains(out.Spec.Mounts[i].Options, "nodev") {
		t.Errorf("mounts are %v, want /dev/zero as a device at /dev/kmsg", out.Spec.Mounts)
	}
}

// TestUserNamespaceHasNot: what is not in a user namespace, or not its own to change, is refused by name.
func TestUserNamespaceHasNot(t *testing.T) {
	ids := &runtimeapi.IDMapping{HostId: 100000, Length: 65536}
	for want, change := range map[string]func(*Input){
		"user of the container 70000":  func(in *Input) { sc(in).RunAsUser = &runtimeapi.Int64Value{Value: 70000} },
		"group of the container 65536": func(in *Input) { sc(in).SupplementalGroups = []int64{65536} },
	} {
		in := testInput(t)
		in.Pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = usernsOf(modePod, ids, ids)
		sc(&in).RunAsUser, sc(&in).RunAsGroup, sc(&in).SupplementalGroups = nil, nil, nil
		change(&in)
		if _, err := Build(t.Context(), in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error that contains %q", err, want)
		}
	}
}
