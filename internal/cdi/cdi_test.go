package cdi_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/cdi"
)

const vendor = `{"cdiVersion": "0.6.0", "kind": "example.com/gpu",
 "containerEdits": {"env": ["DRIVER=loaded"]},
 "devices": [
  {"name": "0", "containerEdits": {"env": ["GPU=0"], "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null"}]}},
  {"name": "gone", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-device"}]}}
 ]}`

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A device brings what its file says, once, and what the file says for all its
// devices; a file that is written after the start counts.
func TestInject(t *testing.T) {
	dir := t.TempDir()
	devices, err := cdi.Open([]string{filepath.Join(dir, "absent"), dir})
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "gpu.json", vendor)
	write(t, dir, "broken.json", "{")
	s := &specs.Spec{Process: &specs.Process{Env: []string{"PATH=/bin"}}}
	if err := devices.Inject(s, []string{"example.com/gpu=0"}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"PATH=/bin", "DRIVER=loaded", "GPU=0"}; !slices.Equal(s.Process.Env, want) {
		t.Errorf("environment: got %q, want %q", s.Process.Env, want)
	}
	if len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/gpu0" || s.Linux.Devices[0].Major != 1 {
		t.Errorf("devices: got %+v, want /dev/gpu0 with the number of /dev/null", s.Linux.Devices)
	}
	if rules := s.Linux.Resources.Devices; len(rules) != 1 || !rules[0].Allow || rules[0].Access != "rwm" {
		t.Errorf("device rules: got %+v", rules)
	}
}

// A device that is not described is the request's fault, and the error tells
// of files that are broken; one that the host does not have is the host's.
func TestInjectRefusals(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "gpu.json", vendor)
	devices, err := cdi.Open([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(name string, kind func(error) bool, words ...string) {
		t.Helper()
		err := devices.Inject(&specs.Spec{}, []string{"example.com/gpu=0", name})
		if err == nil || !kind(err) {
			t.Errorf("%s: got %v", name, err)
			return
		}
		for _, word := range words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: got %v, want a text with %q", name, err, word)
			}
		}
	}
	refuse("example.com/gpu=1", errdefs.IsInvalidArgument, `"example.com/gpu=1"`, dir)
	refuse("example.com/gpu=gone", errdefs.IsFailedPrecondition, "/dev/no-such-device")
	write(t, dir, "broken.json", "{")
	refuse("example.com/gpu=1", errdefs.IsInvalidArgument, filepath.Join(dir, "broken.json"))
	// The same name in two files of one directory belongs to neither.
	write(t, dir, "again.json", vendor)
	refuse("example.com/gpu=0", errdefs.IsInvalidArgument, "again.json", "conflicting")
}
