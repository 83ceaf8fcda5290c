package integration

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/registry"
)

// TestBadSandbox: a sandbox that cannot be is refused with what is wrong, and nothing of it is left.
func TestBadSandbox(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	user := &runtimeapi.Int64Value{Value: 1}
	for _, c := range []struct {
		name    string
		handler string
		change  func(*runtimeapi.PodSandboxConfig)
		code    codes.Code
		words   string
	}{
		{"unknown-handler", "nope", nil, codes.InvalidArgument, `"nope"`},
		{"no-name", "", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "" }, codes.InvalidArgument, "metadata.name"},
		{"no-metadata", "", func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }, codes.InvalidArgument, "metadata"},
		{"group-without-user", "", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.RunAsGroup = user }, codes.InvalidArgument, "run_as_group"},
		{"relative-log-directory", "", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "logs" }, codes.InvalidArgument, "log_directory"},
		{"sysctl-that-is-not-there", "", func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.no_such": "1"} }, codes.InvalidArgument, "net.no_such"},
		{"sysctl-of-the-host", "", func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} }, codes.InvalidArgument, "vm.swappiness"},
		{"host-port-twice", "", func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 1, HostPort: 7007}, {ContainerPort: 2, HostPort: 7007}}
		}, codes.InvalidArgument, "7007"},
		{"host-port-out-of-range", "", func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 1, HostPort: 70000}}
		}, codes.InvalidArgument, "70000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := n.PodConfig()
			if c.change != nil {
				c.change(config)
			}
			_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: c.handler})
			wantError(t, err, c.code, c.words)
			if left := sandboxes(t, n, nil); len(left) > 0 {
				t.Errorf("sandboxes after the refusal: %v, want none", left)
			}
		})
	}
}

// TestNameInUse: a second sandbox or container of the same name and attempt is refused.
func TestNameInUse(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: p.Config})
	wantError(t, err, codes.AlreadyExists, p.ID)
	c := p.Start([]string{"sleep", "1000"})
	_, err = p.Create(c.Config)
	wantError(t, err, codes.AlreadyExists, c.ID)
	c.Remove()
	if _, err := p.Create(c.Config); err != nil {
		t.Errorf("create a container under a name that is free again: %v", err)
	}
}

// TestBadContainer: a container that cannot be is refused at Create with what is wrong, and nothing of it is left.
func TestBadContainer(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	p := n.RunPod()
	for _, c := range []struct {
		name   string
		change func(*runtimeapi.ContainerConfig)
		code   codes.Code
		words  string
	}{
		{"unknown-image", func(c *runtimeapi.ContainerConfig) { c.Image.Image = n.Registry.Host + "/none:1" }, codes.NotFound, "none:1"},
		{"no-image", func(c *runtimeapi.ContainerConfig) { c.Image = nil }, codes.InvalidArgument, "image"},
		{"no-name", func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "" }, codes.InvalidArgument, "metadata.name"},
		{"unknown-user-name", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "missing-user" }, codes.InvalidArgument, "missing-user"},
		{"group-without-user", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1}
		}, codes.InvalidArgument, "run_as_group"},
		{"unknown-capability", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"FLY"}}
		}, codes.InvalidArgument, "FLY"},
		{"no-container-path", mount("/tmp", ""), codes.InvalidArgument, "container_path"},
		{"no-host-path", mount("", "/data"), codes.InvalidArgument, "host_path"},
		{"mount-source-below-a-file", mount("/etc/passwd/source", "/data"), codes.InvalidArgument, "/etc/passwd/source"},
		{"missing-device", func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such", ContainerPath: "/dev/x", Permissions: "rwm"}}
		}, codes.InvalidArgument, "/dev/no-such"},
		{"log-path-outside", func(c *runtimeapi.ContainerConfig) { c.LogPath = "../../outside.log" }, codes.InvalidArgument, "log_path"},
		{"negative-memory", func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = -5 }, codes.InvalidArgument, "memory"},
		{"cpu-that-is-not-there", func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.CpusetCpus = "99999" }, codes.FailedPrecondition, "this host has only"},
		{"cpuset-that-is-no-list", func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.CpusetCpus = "all" }, codes.InvalidArgument, "cpuset"},
		{"privileged-in-a-plain-pod", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }, codes.InvalidArgument, "privileged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := n.ContainerConfig([]string{"true"})
			c.change(config)
			_, err := p.Create(config)
			wantError(t, err, c.code, c.words)
			if left := containers(t, n, nil); len(left) > 0 {
				t.Errorf("containers after the refusal: %v, want none", left)
			}
		})
	}
}

func mount(host, container string) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: host, ContainerPath: container}}
	}
}

// TestUnknownIDs: Status says NotFound, which kubelet relies on; Stop and Remove are content.
func TestUnknownIDs(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	ctx := n.Context()
	_, err := n.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	wantError(t, err, codes.NotFound)
	_, err = n.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	wantError(t, err, codes.NotFound)
	_, err = n.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	wantError(t, err, codes.NotFound)
	_, err = n.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
	wantError(t, err, codes.NotFound)
	_, err = n.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	wantError(t, err, codes.NotFound)
	_, err = n.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: id, Config: n.ContainerConfig([]string{"true"}), SandboxConfig: n.PodConfig(),
	})
	wantError(t, err, codes.NotFound)
	_, err = n.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	wantError(t, err, codes.OK)
	_, err = n.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	wantError(t, err, codes.OK)
	_, err = n.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
	wantError(t, err, codes.OK)
	_, err = n.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	wantError(t, err, codes.OK)
	_, err = n.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: id}})
	wantError(t, err, codes.OK)
	image, err := n.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: id}})
	wantError(t, err, codes.OK)
	if image.GetImage() != nil {
		t.Errorf("status of an unknown image is %v, want none", image.GetImage())
	}
}

// TestWrongOrder: what comes too early or too late is refused.
func TestWrongOrder(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	c := p.Start([]string{"sleep", "1000"})
	wantError(t, c.Start(), codes.FailedPrecondition)
	p.Stop()
	wantError(t, c.Start(), codes.FailedPrecondition)
	_, err := p.Create(n.ContainerConfig([]string{"true"}))
	wantError(t, err, codes.FailedPrecondition)
}

// TestBadNetwork: a CNI plugin that is missing or fails gives a clear error; the node says that it is not ready where that
// can be known, and when the configuration is mended pods run without a restart.
func TestBadNetwork(t *testing.T) {
	var good string
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) {
		good = harness.SeedConflist(t)
		c.Network.Builtin = config.BuiltinNever
		c.Network.CNIBinDirs = append([]string{filepath.Join(c.Root, "../bin")}, c.Network.CNIBinDirs...)
	}})
	conf := filepath.Join(n.Config.Network.CNIConfDir, "10-bad.conflist")
	plugin := filepath.Join(n.Dir(), "bin", "bad-plugin")
	write := func(path, text string, mode os.FileMode) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".new", []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(words ...string) {
		t.Helper()
		n.Eventually("the pod is refused for the right reason", func() error {
			_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.PodConfig()})
			return mentions(err, words...)
		})
	}
	refused("CNI")
	write(conf, `{"cniVersion": "1.0.0", "name": "bad", "plugins": [{"type": "bad-plugin"}]}`, 0o644)
	refused("bad-plugin")
	write(plugin, "#!/bin/sh\ncat >/dev/null\n[ \"$CNI_COMMAND\" = DEL ] && exit 0\necho '{\"cniVersion\":\"1.0.0\",\"code\":100,\"msg\":\"out of cable\"}'\nexit 1\n", 0o755)
	refused("out of cable")
	write(plugin, "#!/bin/sh\ncat >/dev/null\n[ \"$CNI_COMMAND\" = DEL ] && exit 0\necho nonsense\n", 0o755)
	refused("bad-plugin")
	write(conf, good, 0o644)
	n.Eventually("pods run with the mended configuration", func() error {
		_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.PodConfig()})
		return err
	})
}

// TestFullDisk: a pull that does not fit says so, leaves nothing, and works when there is room.
func TestFullDisk(t *testing.T) {
	var disk string
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) {
		disk = c.Root
		if err := os.MkdirAll(disk, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // runs when the node has ended
			if err := unix.Unmount(disk, 0); err != nil {
				t.Error(err)
			}
		})
	}})
	_, err := n.Images.PullImage(n.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.Image}})
	wantError(t, err, codes.ResourceExhausted, "no space left")
	if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=100m"); err != nil {
		t.Fatal(err)
	}
	n.Pull()
}

// TestBadRegistry: each way in which a registry can fail gets its own error, and the pull can be repeated.
func TestBadRegistry(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	proxy := registry.RunProxy(t, n.Registry.Host)
	ref := proxy.Host + "/busybox:1"
	trust(t, n, proxy.Host)
	pull := func(ref string) error {
		_, err := n.Images.PullImage(n.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		return err
	}
	for _, c := range []struct {
		name  string
		fault registry.Fault
		code  codes.Code
	}{
		{"forbidden", registry.Fault{Path: "/manifests/", Status: 403}, codes.PermissionDenied},
		{"unauthorized", registry.Fault{Path: "/manifests/", Status: 401}, codes.Unauthenticated},
		{"not-found", registry.Fault{Path: "/manifests/", Status: 404}, codes.NotFound},
		{"too-many", registry.Fault{Path: "/manifests/", Status: 429}, codes.Unknown},
		{"internal", registry.Fault{Path: "/manifests/", Status: 500}, codes.Unknown},
		{"wrong-digest", registry.Fault{Method: "GET", Path: "/blobs/", Rewrite: registry.Corrupt}, codes.FailedPrecondition},
		{"too-long", registry.Fault{Method: "GET", Path: "/blobs/", Rewrite: registry.Pad}, codes.FailedPrecondition},
		{"too-short", registry.Fault{Method: "GET", Path: "/blobs/", Rewrite: registry.Shorten}, codes.FailedPrecondition},
		{"cut", registry.Fault{Method: "GET", Path: "/blobs/", Cut: -1}, codes.Unknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			proxy.Inject(c.fault)
			wantError(t, pull(ref), c.code)
			answer, err := n.Images.ListImages(n.Context(), &runtimeapi.ListImagesRequest{})
			if err != nil || len(answer.GetImages()) > 0 {
				t.Errorf("images after the failed pull: %v, %v, want none", answer.GetImages(), err)
			}
		})
	}
	wantError(t, pull("127.0.0.1:1/busybox:1"), codes.Unknown, "RegistryUnavailable")
	wantError(t, pull("Not/A:Reference:"), codes.InvalidArgument)
	wantError(t, pull(""), codes.InvalidArgument)
	proxy.Inject(registry.Fault{Method: "GET", Path: "/blobs/", Cut: 100, Times: 3})
	if err := pull(ref); err != nil {
		t.Errorf("pull when the registry breaks off only now and then: %v", err)
	}
}
