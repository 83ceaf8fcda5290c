package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/imagefactory"
)

// TestMissingHostPathsAreCreated mounts directories that do not exist on the host, as manifests of
// vendors do: they are created for root with mode 0755, through links too, and the container has a
// warning. Paths of create_host_paths_except are refused, and so is what cannot be created.
func TestMissingHostPathsAreCreated(t *testing.T) {
	var except string
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) {
		except = filepath.Join(filepath.Dir(c.Root), "disk")
		c.Pod.CreateHostPathsExcept = []string{except}
	}})
	n.Pull()
	link, target := filepath.Join(n.Dir(), "link"), filepath.Join(n.Dir(), "missing", "target")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	mount := func(path string) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: path, ContainerPath: "/data"})
		}
	}
	p := n.RunPod()
	for path, want := range map[string]string{filepath.Join(n.Dir(), "a", "b"): filepath.Join(n.Dir(), "a", "b"), link: target} {
		c := p.Start([]string{"sleep", "1000"}, mount(path))
		c.Output("touch", "/data/file")
		var dir unix.Stat_t
		if err := unix.Stat(want, &dir); err != nil {
			t.Fatal(err)
		}
		if dir.Uid != 0 || dir.Mode != unix.S_IFDIR|0o755 {
			t.Errorf("%s belongs to %d with mode %o, want root's directory with mode 0755", want, dir.Uid, dir.Mode)
		}
		if _, err := os.Stat(filepath.Join(want, "file")); err != nil {
			t.Error(err)
		}
		equal(t, "warnings for "+path, fields(containerWarnings(t, n, c.ID)), "mounts[0].host_path")
	}
	for _, path := range []string{except, except + "/below", "/proc/missing"} {
		_, err := p.Create(n.ContainerConfig([]string{"true"}, mount(path)))
		wantError(t, err, codes.InvalidArgument, "mounts[0].host_path", path)
	}
	if _, err := os.Lstat(except); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want that it does not exist", except, err)
	}
}

// TestEmptyEntrypoint runs images whose entry point is one empty text, by which build files reset that
// of their base image: the command of the image, or the arguments of the request, run alone.
func TestEmptyEntrypoint(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	spec := imagefactory.Spec{Config: imagefactory.MinimalConfig()}
	spec.Config.Entrypoint, spec.Config.Cmd = []string{""}, []string{"sh", "-c", "echo of the image"}
	image, err := imagefactory.BusyboxWith(spec)
	if err != nil {
		t.Fatal(err)
	}
	id, err := pull(n, n.Push("entrypoint", image))
	if err != nil {
		t.Fatal(err)
	}
	p := n.RunPod()
	for want, args := range map[string][]string{"of the image": nil, "of the request": {"sh", "-c", "echo of the request"}} {
		c := p.Start(nil, func(c *runtimeapi.ContainerConfig) { c.Image.Image, c.Command, c.Args = id, nil, args })
		if code := c.Exited().GetExitCode(); code != 0 {
			t.Errorf("%s: exit code %d, want 0", want, code)
		}
		equal(t, "output", strings.Join(c.LogLines(), "\n"), "stdout F "+want)
	}
}

// TestWorkingDirectoryIsADanglingLink: the directory that the link names is created in the container's
// root file system, never outside of it.
func TestWorkingDirectoryIsADanglingLink(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	outside := filepath.Join(n.Dir(), "outside")
	id := pushBusyboxWith(t, n, "workdir",
		imagefactory.Symlink("work", "/srv/app/data"), imagefactory.Symlink("escape", "../../../../../.."+outside))
	p := n.RunPod()
	for dir, want := range map[string]string{"/work": "/srv/app/data", "/escape": outside} {
		c := p.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) { c.Image.Image, c.WorkingDir = id, dir })
		equal(t, "working directory", c.Output("readlink", "/proc/1/cwd"), want)
	}
	if _, err := os.Lstat(outside); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want that it does not exist on the host", outside, err)
	}
}
