package integration

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/imagefactory"
)

// declaring pushes and pulls an image that declares volumes.
func declaring(t *testing.T, n *harness.Node, name string, volumes ...string) func(*runtimeapi.ContainerConfig) {
	t.Helper()
	spec := imagefactory.Spec{Config: ocispec.ImageConfig{Volumes: map[string]struct{}{}}, Layers: []imagefactory.Layer{{Files: []imagefactory.File{
		{Path: "data", Kind: tar.TypeDir, Mode: 0o750, UID: 33, GID: 33}, {Path: "data/file", Content: []byte("of the image"), UID: 33, GID: 33},
		imagefactory.Symlink("way", "/data"), imagefactory.Symlink("out", "../../../../../etc"),
	}}}}
	for _, volume := range volumes {
		spec.Config.Volumes[volume] = struct{}{}
	}
	image, err := imagefactory.BusyboxWith(spec)
	if err != nil {
		t.Fatal(err)
	}
	ref := n.Push(name, image)
	if _, err := pull(n, ref); err != nil {
		t.Fatal(err)
	}
	return func(c *runtimeapi.ContainerConfig) { c.Image.Image = ref }
}

const statVolume = "stat -c '%n %u %g %a' "

// TestDeclaredVolumes runs images with volumes, with and without a user namespace: a container writes to each below a
// read-only root file system; the content is that of the image; the size counts; what was written survives the daemon and
// goes with the container, and another container has its own.
func TestDeclaredVolumes(t *testing.T) {
	for _, handler := range []string{"runc", "crun"} {
		for name, change := range map[string]func(*runtimeapi.PodSandboxConfig){"": func(*runtimeapi.PodSandboxConfig) {}, " user": userNamespace} {
			t.Run(handler+name, func(t *testing.T) {
				n := harness.Start(t, harness.Options{Handler: handler})
				volumes := declaring(t, n, "volumes", "/missing/vol", "/data", "relative", "/a/../../b", "/out/x", "/", "/proc", "/sys/x", "/dev/shm/x")
				p := n.RunPod(change)
				readonly := func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true }
				c := p.Start([]string{"sleep", "1000"}, likePod(p), volumes, readonly)
				equal(t, "volumes", c.Output("sh", "-c", statVolume+"/missing/vol /data /data/file /relative /b /etc/x"),
					"/missing/vol 0 0 755\n/data 33 33 750\n/data/file 33 33 644\n/relative 0 0 755\n/b 0 0 755\n/etc/x 0 0 755")
				equal(t, "write", c.Output("sh", "-c", "for d in /missing/vol /data /relative /b /etc/x; do echo $d >$d/new; cat $d/new; done"),
					"/missing/vol\n/data\n/relative\n/b\n/etc/x")
				equal(t, "exit code of a write beside the volumes", c.Exec("touch", "/missing/x").GetExitCode(), 1)
				equal(t, "warnings", fields(containerWarnings(t, n, c.ID)), strings.TrimSpace(strings.Repeat("Volumes of the image ", 4)))

				n.KillDaemon()
				n.Ready()
				equal(t, "after a restart of the daemon", c.Output("cat", "/data/new", "/data/file"), "/data\nof the image")
				other := p.Start([]string{"sleep", "1000"}, likePod(p), volumes)
				equal(t, "files in a volume of another container", other.Output("ls", "/data"), "file")
				other.Output("dd", "if=/dev/zero", "of=/data/large", "bs=1M", "count=3")
				n.Eventually("the volume counts as writable layer", func() error {
					if used := containerStats(t, n, other.ID).GetWritableLayer().GetUsedBytes().GetValue(); used < 3<<20 {
						return fmt.Errorf("the writable layer is %d bytes", used)
					}
					return nil
				})
				c.Remove()
				other.Remove()
				left, err := filepath.Glob(filepath.Join(n.Config.Root, "images", "rootfs", "*"))
				if err != nil || len(left) > 0 {
					t.Errorf("left: %v, %v", left, err)
				}
			})
		}
	}
}

// TestMountsCoverDeclaredVolumes: a mount of the request takes the place of a volume, also by way of a link. Below a
// mount, a volume is mounted unless the mount is read-only and has no such directory; then a warning says so.
func TestMountsCoverDeclaredVolumes(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	source := filepath.Join(n.Dir(), "source")
	if err := os.MkdirAll(filepath.Join(source, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(source, "mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	mounted := func(at string, readonly bool) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: source, ContainerPath: at, Readonly: readonly})
		}
	}
	volumes := declaring(t, n, "covered", "/data", "/other/below", "/other/missing", "/other/mine")
	c := p.Start([]string{"sleep", "1000"}, volumes, mounted("/way", false), mounted("/other", true))
	equal(t, "what is at the volume", c.Output("ls", "/data"), "below\nmine")
	equal(t, "a volume below a mount", c.Output("sh", "-c", "touch /other/below/x && ls /other/below"), "x")
	equal(t, "warnings", fields(containerWarnings(t, n, c.ID)), "Volumes of the image Volumes of the image")
	if entries, err := os.ReadDir(filepath.Join(source, "below")); err != nil || len(entries) > 0 {
		t.Errorf("the source of the mount has %v, %v", entries, err)
	}
}

// TestDeclaredVolumesAreRefused: too many volumes, and one where the image has a file, are refused by name.
func TestDeclaredVolumesAreRefused(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	var many []string
	for i := range 10_000 {
		many = append(many, fmt.Sprint("/v/", i))
	}
	for name, c := range map[string]struct {
		volumes []string
		words   []string
	}{
		"many": {many, []string{"Volumes of the image", "10000", "256"}},
		"file": {[]string{"/data/file"}, []string{"Volumes of the image", "/data/file", "no directory"}},
	} {
		_, err := p.Create(n.ContainerConfig([]string{"sleep", "1"}, declaring(t, n, name, c.volumes...)))
		wantError(t, err, codes.InvalidArgument, c.words...)
	}
}

// TestVolumeModes: with image.volumes = "mkdir" a volume is a directory of the root file system that belongs to the user
// of the container; with "ignore" there is none.
func TestVolumeModes(t *testing.T) {
	for mode, want := range map[string]string{"mkdir": "/missing/vol 33 33 755\n/data 33 33 750", "ignore": "/data 33 33 750"} {
		t.Run(mode, func(t *testing.T) {
			n := harness.Start(t, harness.Options{Configure: func(c *config.Config) { c.Image.Volumes = mode }})
			c := n.RunPod().Start([]string{"sleep", "1000"}, declaring(t, n, "volumes", "/missing/vol", "/data", "/", "/out/x"),
				func(c *runtimeapi.ContainerConfig) {
					c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 33}
					c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 33}
				})
			equal(t, "volumes", c.Output("sh", "-c", statVolume+"/missing/vol /data 2>/dev/null || true"), want)
			equal(t, "mounts", c.Output("sh", "-c", "grep -c -e /missing -e /data /proc/mounts || true"), "0")
		})
	}
}
