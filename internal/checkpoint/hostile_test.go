package checkpoint

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// coreImage writes an image of a thread with CRIU's own tool, from its JSON form.
func coreImage(t *testing.T, dir string, creds map[string]any, core map[string]any) {
	t.Helper()
	all := map[string]any{
		"uid": 1000, "gid": 1000, "euid": 1000, "egid": 1000, "suid": 1000, "sgid": 1000, "fsuid": 1000, "fsgid": 1000,
		"cap_inh": []int{0, 0}, "cap_prm": []int{1, 0}, "cap_eff": []int{1, 0}, "cap_bnd": []int{1, 0}, "secbits": 0, "groups": []int{1000, 2000},
	}
	maps.Copy(all, creds)
	threadCore := map[string]any{"futex_rla": 0, "futex_rla_len": 0, "creds": all, "seccomp_mode": "filter", "seccomp_filter": 0}
	maps.Copy(threadCore, core)
	image, err := json.Marshal(map[string]any{
		"magic":   "CORE",
		"entries": []any{map[string]any{"mtype": "AARCH64", "thread_core": threadCore}},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "core-1.img")
	cmd := exec.CommandContext(t.Context(), "crit", "encode", "-o", file)
	cmd.Stdin = bytes.NewReader(image)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("crit: %v: %s", err, said)
	}
}

// grants is the spec of a container with one capability, CAP_CHOWN.
func grants(change func(*specs.Spec)) *specs.Spec {
	s := &specs.Spec{
		Process: &specs.Process{
			User: specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{2000}}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}},
		},
		Linux: &specs.Linux{Seccomp: &specs.LinuxSeccomp{}},
	}
	if change != nil {
		change(s)
	}
	return s
}

// TestRestoreGrantsNoMoreThanTheRequest: rights of threads in CRIU's images are compared with the spec.
// What CRIU itself does with the images is not tested here.
func TestRestoreGrantsNoMoreThanTheRequest(t *testing.T) {
	for name, c := range map[string]struct {
		creds, core map[string]any
		spec        func(*specs.Spec)
		refused     string
	}{
		"the_same":             {},
		"effective_capability": {creds: map[string]any{"cap_eff": []int{1 << 21, 0}}, refused: "capabilities"},
		"bounding_capability":  {creds: map[string]any{"cap_bnd": []int{1, 1 << 6}}, refused: "capabilities"},
		"other_user":           {creds: map[string]any{"euid": 0}, refused: "user or group 0"},
		"saved_group":          {creds: map[string]any{"sgid": 0}, refused: "user or group 0"},
		"other_user_by_right": {
			creds: map[string]any{"euid": 0},
			spec:  func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_CHOWN", "CAP_SETUID"} },
		},
		"more_groups":      {creds: map[string]any{"groups": []int{2000, 6}}, refused: "supplemental_groups"},
		"no_filter":        {core: map[string]any{"seccomp_mode": "disabled"}, refused: "seccomp"},
		"no_filter_wanted": {core: map[string]any{"seccomp_mode": "disabled"}, spec: func(s *specs.Spec) { s.Linux.Seccomp = nil }},
		"no_profile":       {spec: func(s *specs.Spec) { s.Process.ApparmorProfile = "berth-default" }, refused: "apparmor"},
		"the_profile": {
			creds: map[string]any{"lsm_profile": "berth-default"},
			spec:  func(s *specs.Spec) { s.Process.ApparmorProfile = "berth-default" },
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			coreImage(t, dir, c.creds, c.core)
			err := MatchProcesses(dir, grants(c.spec))
			if c.refused == "" && err != nil {
				t.Error(err)
			}
			if c.refused != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.refused)) {
				t.Errorf("got %v, want %s refused", err, c.refused)
			}
		})
	}
}

// FuzzThread: an image of a thread with any content is read or refused.
func FuzzThread(f *testing.F) {
	f.Add([]byte("\x19\x43\x56\x54\x47\x38\x05\x55\x02\x00\x00\x00\x2a\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "core-1.img"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := MatchProcesses(dir, grants(nil)); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v", err)
		}
	})
}

// tarOf is an archive with these entries.
func tarOf(t *testing.T, entries ...*tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		if err := w.WriteHeader(e); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, zeros{}, e.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// sparse is an archive with a file of a gigabyte that has no data, as GNU tar makes it.
func sparse(t *testing.T, format string) []byte {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "hole"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	archive, err := exec.CommandContext(t.Context(), "tar", "--sparse", "--format="+format, "-C", dir, "-cf", "-", "hole").Output()
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// TestArchivesAreBounded: sparse files and paths that are too deep are refused, in the archive and in the
// trees that it contains.
func TestArchivesAreBounded(t *testing.T) {
	deep := tarOf(t, &tar.Header{Name: strings.Repeat("d/", maxDepth) + "f", Typeflag: tar.TypeReg, Format: tar.FormatPAX})
	for name, archive := range map[string][]byte{"gnu": sparse(t, "gnu"), "pax": sparse(t, "pax"), "deep": deep} {
		if err := CheckTree(bytes.NewReader(archive)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
		d := sample(t)
		if err := os.WriteFile(filepath.Join(string(d), changesFile), archive, 0o600); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(t.TempDir(), "c.tar")
		if err := d.Pack(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		a, err := Open(to)
		if err != nil {
			t.Fatal(err)
		}
		applied := false
		err = a.Changes(func(io.Reader) error { applied = true; return nil })
		if !errdefs.IsInvalidArgument(err) || applied {
			t.Errorf("%s as changed files: applied %t, error %v", name, applied, err)
		}
	}
	if err := checkEntry(&tar.Header{Name: "f"}, maxEntries); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), fmt.Sprint(maxEntries)) {
		t.Errorf("too many entries: %v", err)
	}
	if err := CheckTree(bytes.NewReader(tarOf(t, &tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Size: 5}))); err != nil {
		t.Errorf("an ordinary archive: %v", err)
	}
}
