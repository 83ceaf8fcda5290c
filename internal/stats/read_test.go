package stats

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

const testDeadline = 30 * time.Second

// TestRead reads the cgroup of a process that computes and allocates.
func TestRead(t *testing.T) {
	privilege.Root(t)
	path := "/berth-test-" + strings.ToLower(rand.Text()[:10])
	leakcheck.Check(t, filepath.Base(path))
	host, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if err := errors.Join(host.KillAll(ctx, path), host.Remove(path)); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	if err := host.Create(path + "/a"); err != nil {
		t.Fatal(err)
	}
	idle, err := Read(host, path)
	if err != nil {
		t.Fatalf("Read of an empty cgroup: %v", err)
	}
	if idle.Pids.Processes != 0 || idle.Memory.RSS != 0 {
		t.Errorf("empty cgroup: got %+v", idle)
	}
	// The shell waits, so that all it does is charged to the cgroup.
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "read go; head -c 8388608 /dev/zero | tail -c 8388607 > /dev/null; i=0; "+
		"while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; read go")
	stdin, stdinErr := cmd.StdinPipe()
	stdout, stdoutErr := cmd.StdoutPipe()
	if err := errors.Join(stdinErr, stdoutErr, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(stdin.Close(), cmd.Process.Kill()); err != nil {
			t.Errorf("end sh: %v", err)
		}
		if err := cmd.Wait(); err == nil {
			t.Error("sh ended by itself")
		}
	})
	if err := host.AddProc(path+"/a", cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := stdin.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	got, err := Read(host, path)
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	// The kernel adds up memory.stat every two seconds, later on a busy machine.
	for deadline := time.Now().Add(20 * time.Second); host.Has("memory") && got.Memory.RSS == 0 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if got, err = Read(host, path); err != nil {
			t.Fatalf("Read: %v", err)
		}
	}
	if got.At.IsZero() || got.CPU.UsageNanos == 0 || got.Pids.Processes != 1 {
		t.Errorf("got %+v, want a time, CPU use and one process", got)
	}
	if host.Has("memory") && (got.Memory.Usage == 0 || got.Memory.WorkingSet == 0 || got.Memory.RSS == 0 || got.Memory.PageFaults == 0) {
		t.Errorf("memory: got %+v, want use and page faults", got.Memory)
	}
	if host.Has("pids") && got.Pids.Tasks != 1 {
		t.Errorf("tasks: got %d, want 1", got.Pids.Tasks)
	}
	if host.Mode != cgroup.V1 && got.CPU.Pressure == nil {
		t.Errorf("pressure: got nil, want figures from the v2 hierarchy")
	}
}

// TestReadAbsent expects a kind of error that callers can tell apart.
func TestReadAbsent(t *testing.T) {
	host, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Read(host, "/berth-test-"+strings.ToLower(rand.Text())); !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want not found", err)
	}
}

// tree writes control files below a directory.
func tree(t testing.TB, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func parse(t testing.TB, mounts string) *cgroup.Host {
	t.Helper()
	host, err := cgroup.Parse(strings.NewReader(mounts))
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// unifiedFiles are what a v2 host writes, cut to what matters.
var unifiedFiles = map[string]string{
	"cgroup.controllers": "cpu io memory hugetlb pids\n",
	"a/cpu.stat":         "usage_usec 10\nuser_usec 7\nsystem_usec 3\nnr_periods 5\nnr_throttled 2\nthrottled_usec 4\n",
	"a/cpu.max":          "50000 100000\n", "a/cpu.weight": "39\n",
	"a/cpu.pressure":        "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
	"a/memory.pressure":     "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
	"a/memory.current":      "1000\n",
	"a/memory.max":          "2000\n",
	"a/memory.peak":         "1500\n",
	"a/memory.stat":         "anon 400\nfile 500\nkernel 50\nfile_mapped 30\ninactive_file 300\npgfault 9\npgmajfault 1\n",
	"a/memory.events":       "low 0\nhigh 0\nmax 6\noom 2\noom_kill 1\n",
	"a/memory.swap.current": "10\n", "a/memory.swap.max": "max\n",
	"a/io.stat":      "259:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16\n8:0 rbytes=7 wbytes=0 rios=1 wios=0 dbytes=0 dios=0 cost.usage=1\n",
	"a/pids.current": "3\n", "a/pids.max": "max\n", "a/cgroup.procs": "1\n2\n", "a/b/cgroup.procs": "3\n",
	"a/hugetlb.2MB.current": "4096\n", "a/hugetlb.2MB.rsvd.current": "1\n",
}

// TestReadUnified checks every figure of a v2 cgroup.
func TestReadUnified(t *testing.T) {
	root := t.TempDir()
	tree(t, root, unifiedFiles)
	got, err := Read(parse(t, "1 1 0:1 / "+root+" rw - cgroup2 cgroup2 rw\n"), "/a")
	if err != nil {
		t.Fatal(err)
	}
	want := Container{
		At: got.At,
		CPU: CPU{
			UsageNanos: 10000, UserNanos: 7000, SystemNanos: 3000, Periods: 5, Throttled: 2, ThrottledNanos: 4000,
			Quota: 50000, Period: 100000, Shares: 998,
			Pressure: &PSI{Some: Pressure{TotalNanos: 12000, Avg10: 1.5, Avg60: 0.25}, Full: Pressure{TotalNanos: 5000}},
		},
		Memory: Memory{
			Usage: 1000, WorkingSet: 700, RSS: 400, Limit: 2000, Available: 1300, Peak: 1500, Cache: 500, MappedFile: 30,
			Kernel: 50, PageFaults: 9, MajorPageFaults: 1, OwnPageFaults: 9, OwnMajorPageFaults: 1, FailCount: 6, OOMEvents: 2, OOMKilled: 1, Pressure: &PSI{},
		},
		Swap: &Swap{Usage: 10},
		IO: []IODevice{
			{Major: 8, Minor: 0, ReadBytes: 7, ReadOps: 1}, {Major: 8, Minor: 16},
			{Major: 259, ReadBytes: 1, WriteBytes: 2, ReadOps: 3, WriteOps: 4, DiscardBytes: 5, DiscardOps: 6},
		},
		Pids:    Pids{Tasks: 3, Processes: 3},
		Hugetlb: []Hugetlb{{PageSize: "2MB", Usage: 4096}},
	}
	// A device without figures is not listed.
	want.IO = append(want.IO[:1], want.IO[2])
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestReadLegacy checks every figure of a v1 cgroup.
func TestReadLegacy(t *testing.T) {
	root := t.TempDir()
	tree(t, root, map[string]string{
		"cpu/a/cpuacct.usage": "100\n", "cpu/a/cpuacct.usage_user": "60\n", "cpu/a/cpuacct.usage_sys": "40\n",
		"cpu/a/cpu.stat":         "nr_periods 5\nnr_throttled 2\nthrottled_time 4\n",
		"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n", "cpu/a/cpu.shares": "1024\n",
		"memory/a/memory.usage_in_bytes": "1000\n", "memory/a/memory.max_usage_in_bytes": "1500\n",
		"memory/a/memory.kmem.usage_in_bytes": "50\n", "memory/a/memory.failcnt": "6\n",
		"memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
		"memory/a/memory.stat": "cache 1\npgfault 4\ntotal_cache 500\ntotal_rss 400\ntotal_mapped_file 30\ntotal_inactive_file 300\ntotal_pgfault 9\n" +
			"total_pgmajfault 1\ntotal_swap 10\nhierarchical_memory_limit 2000\nhierarchical_memsw_limit 2500\n",
		"blkio/a/blkio.throttle.io_service_bytes_recursive": "8:0 Read 7\n8:0 Write 2\n8:0 Sync 9\n8:0 Discard 5\n8:0 Total 9\nTotal 9\n",
		"blkio/a/blkio.throttle.io_serviced_recursive":      "8:0 Read 1\n8:0 Write 3\nTotal 4\n",
	})
	host := parse(t, "1 1 0:1 / "+root+"/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"+
		"2 1 0:1 / "+root+"/memory rw - cgroup cgroup rw,memory\n3 1 0:1 / "+root+"/blkio rw - cgroup cgroup rw,blkio\n")
	got, err := Read(host, "/a")
	if err != nil {
		t.Fatal(err)
	}
	want := Container{
		At:  got.At,
		CPU: CPU{UsageNanos: 100, UserNanos: 60, SystemNanos: 40, Periods: 5, Throttled: 2, ThrottledNanos: 4, Period: 100000, Shares: 1024},
		Memory: Memory{
			Usage: 1000, WorkingSet: 700, RSS: 400, Limit: 2000, Available: 1300, Peak: 1500, Cache: 500, MappedFile: 30,
			Kernel: 50, PageFaults: 9, MajorPageFaults: 1, OwnPageFaults: 4, FailCount: 6, OOMEvents: 1, OOMKilled: 1,
		},
		Swap: &Swap{Usage: 10, Limited: true, Limit: 500, Available: 490},
		IO:   []IODevice{{Major: 8, ReadBytes: 7, WriteBytes: 2, ReadOps: 1, WriteOps: 3, DiscardBytes: 5}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestReadNonsense expects an error, not a zero, for a figure that is none.
func TestReadNonsense(t *testing.T) {
	root := t.TempDir()
	tree(t, root, unifiedFiles)
	tree(t, root, map[string]string{"a/memory.current": "many\n"})
	_, err := Read(parse(t, "1 1 0:1 / "+root+" rw - cgroup2 cgroup2 rw\n"), "/a")
	if err == nil || !strings.Contains(err.Error(), "memory.current") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

// FuzzRead feeds the control files with the most structure.
func FuzzRead(f *testing.F) {
	f.Add(unifiedFiles["a/io.stat"], unifiedFiles["a/cpu.pressure"], unifiedFiles["a/memory.stat"])
	root := f.TempDir()
	tree(f, root, unifiedFiles)
	host := parse(f, "1 1 0:1 / "+root+" rw - cgroup2 cgroup2 rw\n")
	f.Fuzz(func(t *testing.T, io, pressure, memory string) {
		tree(t, root, map[string]string{"a/io.stat": io, "a/cpu.pressure": pressure, "a/memory.stat": memory})
		if got, err := Read(host, "/a"); err == nil && got.Memory.WorkingSet > got.Memory.Usage {
			t.Errorf("working set %d is greater than usage %d", got.Memory.WorkingSet, got.Memory.Usage)
		}
	})
}

// TestReadBrief: what is read in brief is the same.
func TestReadBrief(t *testing.T) {
	root := t.TempDir()
	tree(t, root, unifiedFiles)
	host := parse(t, "1 1 0:1 / "+root+" rw - cgroup2 cgroup2 rw\n")
	whole, wholeErr := Read(host, "/a")
	brief, err := ReadBrief(host, "/a")
	if err := errors.Join(wholeErr, err); err != nil {
		t.Fatal(err)
	}
	if brief.CPU.UsageNanos != whole.CPU.UsageNanos || brief.Memory.WorkingSet != whole.Memory.WorkingSet ||
		brief.Memory.Available != whole.Memory.Available || brief.Pids.Processes != 3 || *brief.Swap != *whole.Swap ||
		*brief.CPU.Pressure != *whole.CPU.Pressure || *brief.Memory.Pressure != *whole.Memory.Pressure {
		t.Errorf("in brief %+v, in full %+v", brief, whole)
	}
	if brief.IO != nil || brief.Hugetlb != nil || brief.Memory.Peak != 0 {
		t.Errorf("in brief there is %+v", brief)
	}
}

func BenchmarkRead(b *testing.B) { benchmark(b, Read) }

func BenchmarkReadBrief(b *testing.B) { benchmark(b, ReadBrief) }

func benchmark(b *testing.B, read func(*cgroup.Host, string) (Container, error)) {
	b.Helper()
	host, err := cgroup.Detect()
	if err != nil {
		b.Fatal(err)
	}
	path := "/berth-test-" + strings.ToLower(rand.Text()[:10])
	if err := host.Create(path); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := host.Remove(path); err != nil {
			b.Error(err)
		}
	})
	for b.Loop() {
		if _, err := read(host, path); err != nil {
			b.Fatal(err)
		}
	}
}
