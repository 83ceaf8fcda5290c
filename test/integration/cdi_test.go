package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
)

// vendor describes two devices: what the first brings, and what each of the vendor's devices does.
const vendor = `{"cdiVersion": "0.6.0", "kind": "example.com/thing",
  "containerEdits": {
    "env": ["VENDOR=here"],
    "hooks": [{"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "cat >%[1]s/state; echo $1 >>%[1]s/hook", "hook", "ran"]}]
  },
  "devices": [
    {"name": "one", "containerEdits": {
      "env": ["THING=1"],
      "deviceNodes": [{"path": "/dev/thing1", "hostPath": "/dev/kmsg", "permissions": "w"}],
      "mounts": [{"hostPath": "%[1]s/library", "containerPath": "/opt/thing", "options": ["ro", "bind"]}]}},
    {"name": "two", "containerEdits": {"env": ["OTHER=2"]}}
  ]}`

// TestCDI: a container gets what the spec files say about the devices that it names: environment, nodes that it may use
// as permitted, mounts and hooks. Names may be repeated, and come by annotation too.
func TestCDI(t *testing.T) {
	for _, handler := range []string{"crun", "runc"} {
		t.Run(handler, func(t *testing.T) {
			dir := t.TempDir()
			n := harness.Start(t, harness.Options{Handler: handler, Configure: func(c *config.Config) {
				c.CDI.SpecDirs = []string{filepath.Join(dir, "specs")}
			}})
			n.Pull()
			p := n.RunPod()
			write(t, filepath.Join(dir, "specs", "thing.json"), fmt.Sprintf(vendor, dir))
			write(t, filepath.Join(dir, "library", "driver"), "driver\n")
			c := p.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
				c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "example.com/thing=one"}, {Name: "example.com/thing=one"}}
				c.Annotations = map[string]string{"cdi.k8s.io/plugin": "example.com/thing=two"}
			})
			equal(t, "environment", c.Output("sh", "-c", "echo $VENDOR $THING $OTHER"), "here 1 2")
			equal(t, "writing to the node", c.Output("sh", "-c", ": >/dev/thing1 && echo opened"), "opened")
			if answer := c.Exec("sh", "-c", ": </dev/thing1"); answer.GetExitCode() == 0 {
				t.Error("the node was read, which its permissions do not allow")
			}
			equal(t, "mount", c.Output("cat", "/opt/thing/driver"), "driver")
			equal(t, "hook", read(t, filepath.Join(dir, "hook")), "ran\n")
			if state := read(t, filepath.Join(dir, "state")); !strings.Contains(state, c.ID) {
				t.Errorf("state that the hook got is %s, want the container's ID in it", state)
			}
		})
	}
}

// TestCDIRefusals: a name that is none, or that no file describes, is refused when the container is created; the error
// names the files that are broken.
func TestCDIRefusals(t *testing.T) {
	dir := t.TempDir()
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) { c.CDI.SpecDirs = []string{dir} }})
	n.Pull()
	p := n.RunPod()
	write(t, filepath.Join(dir, "broken.yaml"), "cdiVersion: [")
	for name, want := range map[string]string{
		"thing":                   `CDI_devices[0].name "thing"`,
		"example.com/thing=three": filepath.Join(dir, "broken.yaml"),
	} {
		_, err := p.Create(n.ContainerConfig([]string{"true"}, func(c *runtimeapi.ContainerConfig) {
			c.CDIDevices = []*runtimeapi.CDIDevice{{Name: name}}
		}))
		wantError(t, err, codes.InvalidArgument, "CDI_devices", name, want)
	}
}

// TestPluginAddsCDIDevice: a device that a plugin adds is what it is when the request names it; one that is not described
// keeps the container from being made.
func TestPluginAddsCDIDevice(t *testing.T) {
	dir := t.TempDir()
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) { c.CDI.SpecDirs = []string{dir} }})
	n.Pull()
	write(t, filepath.Join(dir, "thing.json"), `{"cdiVersion": "0.6.0", "kind": "example.com/thing",
		"devices": [{"name": "two", "containerEdits": {"env": ["OTHER=2"]}}]}`)
	var name atomic.Value
	name.Store("example.com/thing=two")
	connect(t, n, "10", &plugin{adjust: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a := &api.ContainerAdjustment{}
		a.AddCDIDevice(&api.CDIDevice{Name: name.Load().(string)})
		return a, nil
	}})
	p := n.RunPod()
	equal(t, "environment", p.Start([]string{"sleep", "1000"}).Output("sh", "-c", "echo $OTHER"), "2")
	name.Store("example.com/thing=three")
	_, err := p.Create(n.ContainerConfig([]string{"true"}))
	wantError(t, err, codes.InvalidArgument, "example.com/thing=three")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
