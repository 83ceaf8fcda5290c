package selinux

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	selinuxlib "github.com/opencontainers/selinux/go-selinux"
)

// TestWith: what a request names replaces that part of a label and no other.
func TestWith(t *testing.T) {
	const pod = "system_u:system_r:container_t:s0:c1,c2"
	for want, o := range map[string]Options{
		pod:                                      {},
		"system_u:system_r:container_t:s0":       {Level: "s0"},
		"system_u:system_r:other_t:s0:c1,c2":     {Type: "other_t"},
		"me_u:me_r:other_t:s0:c3,c4":             {User: "me_u", Role: "me_r", Type: "other_t", Level: "s0:c3,c4"},
		"system_u:system_r:spc_t:s0":             {Type: unconfined, Level: defaultLevel},
		"system_u:system_r:container_t:s0-s0:c9": {Level: "s0-s0:c9"},
	} {
		if got, err := with(pod, o); err != nil || got != want {
			t.Errorf("%+v: got %q, %v, want %q", o, got, err, want)
		}
	}
	if _, err := with("no label", Options{}); err == nil {
		t.Error("what is no label was taken for one")
	}
	if got := (Labels{Process: pod}).Level(); got != "s0:c1,c2" {
		t.Errorf("level: got %q", got)
	}
}

// TestLabels: on a host with SELinux pods differ, containers of a pod do not, what
// is malformed is refused, and privileged containers are not confined. On a host
// without, there are no labels.
func TestLabels(t *testing.T) {
	pod, err := ForPod(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer Release(pod)
	if !Enabled() {
		container, err := pod.ForContainer(Options{Level: "s0,c4,c5"}, false)
		if err != nil || container != (Labels{}) || pod != (Labels{}) {
			t.Errorf("without SELinux: got %+v, %+v, %v, want no labels", pod, container, err)
		}
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{"reserve": Reserve(pod), "label": SetFile(file, pod.Mount), "relabel": Relabel(file, pod.Mount)} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		return
	}
	other, err := ForPod(Options{})
	if err != nil || other.Level() == pod.Level() || pod.Level() == "" {
		t.Fatalf("two pods have %+v and %+v, %v, want two levels", pod, other, err)
	}
	defer Release(other)
	if err := selinuxlib.CheckLabel(pod.Process); err == nil {
		t.Error("the level of a pod is not reserved")
	}
	same, err := pod.ForContainer(Options{}, false)
	if err != nil || same != pod {
		t.Errorf("a container: got %+v, %v, want %+v", same, err, pod)
	}
	own, err := pod.ForContainer(Options{Level: "s0:c4,c5"}, false)
	if err != nil || own.Level() != "s0:c4,c5" || !strings.HasSuffix(own.Mount, ":s0:c4,c5") {
		t.Errorf("a container with a level: got %+v, %v", own, err)
	}
	for _, privileged := range []bool{false, true} {
		if _, err := pod.ForContainer(Options{Level: "s0,c4,c5"}, privileged); !errdefs.IsInvalidArgument(err) {
			t.Errorf("malformed level, privileged %v: got %v, want an invalid argument", privileged, err)
		}
	}
	free, err := pod.ForContainer(Options{}, true)
	if err != nil || !strings.Contains(free.Process, ":spc_t:s0") || free.Mount != pod.Mount {
		t.Errorf("a privileged container: got %+v, %v", free, err)
	}
	for range 2 {
		if err := Reserve(pod); err != nil {
			t.Errorf("reserve again: %v", err)
		}
	}
}
