package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestParse gives mount tables of real hosts and expects the mode and what can
// be limited.
func TestParse(t *testing.T) {
	unified := t.TempDir()
	write(t, filepath.Join(unified, "cgroup.controllers"), "cpuset cpu io memory hugetlb pids\n")
	legacy := `33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
`
	tests := []struct {
		name, mounts string
		mode         Mode
		has, lacks   []string
		roots        int
	}{
		{
			name: "v1", mode: V1, mounts: legacy, roots: 3,
			has: []string{"cpu", "cpuacct", "memory"}, lacks: []string{"pids", "hugetlb"},
		},
		{
			name: "v1-while-a-checkpoint-is-made", mode: V1, roots: 3, has: []string{"cpu", "memory"},
			mounts: legacy + strings.ReplaceAll(legacy, "/sys/fs/cgroup/", "/run/berth/shim/c/x/.criu.cgyard.y/"),
		},
		{
			name: "hybrid", mode: Hybrid, mounts: legacy + "41 31 0:38 / " + unified + " rw,relatime - cgroup2 cgroup2 rw\n", roots: 4,
			has: []string{"cpu", "memory"}, lacks: []string{"hugetlb"},
		},
		{
			name: "v2", mode: V2, mounts: "41 31 0:38 / " + unified + " rw,relatime - cgroup2 cgroup2 rw\n", roots: 1,
			has: []string{"cpu", "memory", "hugetlb", "devices", "freezer"}, lacks: []string{"cpuacct"},
		},
		{
			name: "v2-beside-a-named-hierarchy", mode: V2, roots: 1,
			mounts: "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n41 31 0:38 / " + unified + " rw - cgroup2 cgroup2 rw\n",
			has:    []string{"memory"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			host, err := Parse(strings.NewReader(test.mounts))
			if err != nil {
				t.Fatalf("Parse: %v", err)
			}
			if host.Mode != test.mode {
				t.Errorf("mode: got %s, want %s", host.Mode, test.mode)
			}
			if got := len(host.roots()); got != test.roots {
				t.Errorf("hierarchies: got %d (%v), want %d", got, host.roots(), test.roots)
			}
			for _, name := range test.has {
				if !host.Has(name) || !slices.Contains(host.Controllers(), name) {
					t.Errorf("controller %s: got absent, want present in %v", name, host.Controllers())
				}
			}
			for _, name := range test.lacks {
				if host.Has(name) {
					t.Errorf("controller %s: got present, want absent", name)
				}
			}
		})
	}
}

// TestParseWithoutCgroups expects an error that names the remedy.
func TestParseWithoutCgroups(t *testing.T) {
	_, err := Parse(strings.NewReader("22 27 0:21 / /proc rw - proc proc rw\n"))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "mount -t cgroup2") {
		t.Fatalf("got %v, want a failed precondition that names the remedy", err)
	}
}

// TestContainerPath checks both drivers against paths as kubelet sends them.
func TestContainerPath(t *testing.T) {
	const id = "0123abcd"
	tests := []struct {
		name, parent, oci, fs string
		driver                Driver
	}{
		{"kubelet", "/kubepods/burstable/pod42", "/kubepods/burstable/pod42/" + id, "/kubepods/burstable/pod42/" + id, Cgroupfs},
		{"unset", "", "/berth/" + id, "/berth/" + id, Cgroupfs},
		{"relative", "a//b/", "/a/b/" + id, "/a/b/" + id, Cgroupfs},
		{
			"kubelet-systemd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod42_7.slice",
			"kubepods-burstable-pod42_7.slice:berth:" + id,
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod42_7.slice/berth-" + id + ".scope", Systemd,
		},
		{"critest-systemd", "/test.slice", "test.slice:berth:" + id, "/test.slice/berth-" + id + ".scope", Systemd},
		{"unset-systemd", "", "berth.slice:berth:" + id, "/berth.slice/berth-" + id + ".scope", Systemd},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			oci, fs, err := ContainerPath(test.driver, test.parent, id)
			if err != nil || oci != test.oci || fs != test.fs {
				t.Errorf("got %q, %q, %v, want %q, %q", oci, fs, err, test.oci, test.fs)
			}
		})
	}
}

// TestContainerPathRefusals checks parents that must not be used.
func TestContainerPathRefusals(t *testing.T) {
	for _, test := range []struct {
		parent string
		driver Driver
	}{
		{"/", Cgroupfs}, {"/a/../../b", Cgroupfs}, {"/kubepods/pod42", Systemd}, {"-.slice", Systemd},
		{"/a--b.slice", Systemd}, {".slice", Systemd}, {"a-.slice", Systemd}, {"-a.slice", Systemd},
	} {
		if _, _, err := ContainerPath(test.driver, test.parent, "x"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s parent %q: got %v, want an invalid argument", test.driver, test.parent, err)
		}
	}
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), dirMode); err != nil {
		t.Fatalf("write %s: %v", file, err)
	}
	if err := os.WriteFile(file, []byte(content), fileMode); err != nil {
		t.Fatalf("write %s: %v", file, err)
	}
}

// TestPathOf finds back the cgroup of each path that an OCI spec may have.
func TestPathOf(t *testing.T) {
	for _, driver := range []Driver{Cgroupfs, Systemd} {
		oci, want, err := ContainerPath(driver, "/kubepods.slice/kubepods-pod1.slice", "abc")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := PathOf(driver, oci); got != want || err != nil {
			t.Errorf("%s: path of %q is %q, %v, want %q", driver, oci, got, err, want)
		}
	}
	for driver, paths := range map[Driver][]string{
		Cgroupfs: {"", "/", "a/b", "/a/../../b"}, Systemd: {"", "/a/b", "a.slice:b", "a.slice::c", "x:y:z"},
	} {
		for _, path := range paths {
			if got, err := PathOf(driver, path); err == nil {
				t.Errorf("%s: path of %q is %q, want an error", driver, path, got)
			}
		}
	}
}
