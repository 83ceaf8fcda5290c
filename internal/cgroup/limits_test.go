package cgroup

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-runtime/berth/test/privilege"
)

// TestEnableControllers checks that controllers are passed on level by level.
// It works on a directory of plain files: the controllers of this machine may
// all be taken by v1 hierarchies.
func TestEnableControllers(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "cgroup.controllers"), "memory cpu\n")
	write(t, filepath.Join(root, "cgroup.subtree_control"), "cpu\n")
	host, err := Parse(strings.NewReader("1 1 0:1 / " + root + " rw - cgroup2 cgroup2 rw\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Create("/a"); err != nil {
		t.Fatalf("Create: %v", err)
	}
	if got, err := readString(filepath.Join(root, "cgroup.subtree_control")); err != nil || got != "+memory" {
		t.Errorf("written to cgroup.subtree_control: got %q, %v, want %q", got, err, "+memory")
	}
}

// TestLimits reads limits in the forms of both versions.
func TestLimits(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "cgroup.controllers"), "memory cpu pids\n")
	files := map[string]string{
		"memory.max": "1048576\n", "memory.swap.max": "max\n", "cpu.max": "50000 100000\n",
		"cpu.weight": "79\n", "pids.max": "32\n",
	}
	for file, content := range files {
		write(t, filepath.Join(root, "a", file), content)
	}
	host, err := Parse(strings.NewReader("1 1 0:1 / " + root + " rw - cgroup2 cgroup2 rw\n"))
	if err != nil {
		t.Fatal(err)
	}
	limits, err := host.Limits("/a")
	if err != nil {
		t.Fatalf("Limits: %v", err)
	}
	for name, pair := range map[string][2]*uint64{
		"memory": {limits.MemoryBytes, new(uint64(1 << 20))}, "swap": {limits.SwapBytes, nil},
		"quota": {limits.CPUQuota, new(uint64(50000))}, "period": {limits.CPUPeriod, new(uint64(100000))},
		"weight": {limits.CPUWeight, new(uint64(79))}, "shares": {limits.CPUShares, nil}, "pids": {limits.Pids, new(uint64(32))},
	} {
		got, want := pair[0], pair[1]
		if (got == nil) != (want == nil) || got != nil && *got != *want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

// TestLimitsOfMachine reads the limits of a cgroup that has none but those
// set here.
func TestLimitsOfMachine(t *testing.T) {
	privilege.Root(t)
	each(t, func(t *testing.T, host *Host, path string) {
		if err := host.Create(path); err != nil {
			t.Fatal(err)
		}
		limits, err := host.Limits(path)
		if err != nil {
			t.Fatalf("Limits: %v", err)
		}
		if limits.MemoryBytes != nil || limits.SwapBytes != nil || limits.CPUQuota != nil || limits.Pids != nil {
			t.Errorf("new cgroup: got %+v, want no limit", limits)
		}
		dir, ok := host.Dir("pids", path)
		if !ok {
			return
		}
		if err := writeString(filepath.Join(dir, "pids.max"), "12"); err != nil {
			t.Fatal(err)
		}
		if limits, err := host.Limits(path); err != nil || limits.Pids == nil || *limits.Pids != 12 {
			t.Errorf("Limits: got %+v, %v, want 12 tasks", limits, err)
		}
		if err := host.LiftTaskLimit(path); err != nil {
			t.Errorf("LiftTaskLimit: %v", err)
		}
		if limits, err := host.Limits(path); err != nil || limits.Pids != nil {
			t.Errorf("Limits: got %+v, %v, want no limit on tasks", limits, err)
		}
	})
}

// TestLiftCPUQuota: a cgroup with a quota has none afterwards.
func TestLiftCPUQuota(t *testing.T) {
	privilege.Root(t)
	each(t, func(t *testing.T, host *Host, path string) {
		if err := host.Create(path); err != nil {
			t.Fatal(err)
		}
		dir, ok := host.Dir("cpu", path)
		if !ok {
			if err := host.LiftCPUQuota(path, 0); err != nil {
				t.Errorf("LiftCPUQuota without the controller: %v", err)
			}
			return
		}
		file, value := "cpu.cfs_quota_us", "20000"
		if host.Mode == V2 {
			file, value = "cpu.max", "20000 100000"
		}
		if err := writeString(filepath.Join(dir, file), value); err != nil {
			t.Fatal(err)
		}
		if limits, err := host.Limits(path); err != nil || limits.CPUQuota == nil || *limits.CPUQuota != 20000 {
			t.Fatalf("Limits: got %+v, %v, want the quota", limits, err)
		}
		for _, period := range []int64{0, 50000} {
			if err := host.LiftCPUQuota(path, period); err != nil {
				t.Errorf("LiftCPUQuota with period %d: %v", period, err)
			}
		}
		if limits, err := host.Limits(path); err != nil || limits.CPUQuota != nil {
			t.Errorf("Limits: got %+v, %v, want no quota", limits, err)
		}
		if err := host.LiftCPUQuota(path+"-gone", 0); err == nil {
			t.Error("LiftCPUQuota of a cgroup that does not exist: got no error")
		}
	})
}

// TestSwapLimit looks for the files that limit swap, of either version.
func TestSwapLimit(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "cgroup.controllers"), "memory\n")
	unified := "1 1 0:1 / " + root + " rw - cgroup2 cgroup2 rw\n"
	legacy := "1 1 0:1 / " + root + " rw - cgroup cgroup rw,memory\n"
	for _, test := range []struct {
		name, mounts, file string
		want               bool
	}{
		{"v2-without", unified, "a/memory.max", false},
		{"v1-without", legacy, "memory.limit_in_bytes", false},
		{"v2-with", unified, "a/memory.swap.max", true},
		{"v1-with", legacy, "memory.memsw.limit_in_bytes", true},
	} {
		write(t, filepath.Join(root, test.file), "")
		host, err := Parse(strings.NewReader(test.mounts))
		if err != nil {
			t.Fatal(err)
		}
		if got := host.SwapLimit(); got != test.want {
			t.Errorf("%s: got %t, want %t", test.name, got, test.want)
		}
	}
}
