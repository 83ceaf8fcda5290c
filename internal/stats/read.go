package stats

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/cgroup"
)

// noLimit is the least value by which v1 says "no limit".
const noLimit = 1<<63 - 1<<16

// Read reads the usage of the cgroup at path, with that of the cgroups below
// it. If the cgroup does not exist, or goes while it is read, the error is of
// kind errdefs.ErrNotFound.
func Read(host *cgroup.Host, path string) (Container, error) {
	return read(&reader{}, host, path)
}

// ReadBrief is Read for those who ask often: it opens a third of the files, and
// leaves out all but CPU time, memory in use, swap, pressure and the number of
// processes.
func ReadBrief(host *cgroup.Host, path string) (Container, error) {
	return read(&reader{brief: true}, host, path)
}

func read(r *reader, host *cgroup.Host, path string) (Container, error) {
	result := Container{At: time.Now()}
	if !host.Exists(path) {
		return Container{}, fmt.Errorf("read usage of cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	dir := func(controller string) string {
		name, _ := host.Dir(controller, path)
		return name
	}
	if host.Mode == cgroup.V2 {
		readUnified(r, &result, dir)
	} else {
		readLegacy(r, &result, dir)
	}
	if unified, ok := host.Unified(path); ok && (host.Mode == cgroup.V2 || r.populated(unified)) {
		// On hybrid hosts the v2 hierarchy has no limits, but pressure: of the
		// processes that are in it, which is up to the OCI runtime.
		result.CPU.Pressure = r.pressure(unified, "cpu.pressure")
		result.Memory.Pressure = r.pressure(unified, "memory.pressure")
		result.IOPressure = r.pressure(unified, "io.pressure")
	}
	r.pids(&result.Pids, dir("pids"), dir(accountant(host)), host.Mode == cgroup.V2)
	if !r.brief {
		result.Hugetlb = r.hugetlb(dir("hugetlb"), host.Mode == cgroup.V2)
	}
	if r.err != nil {
		return Container{}, fmt.Errorf("read usage of cgroup %s: %w", path, r.err)
	}
	if !host.Exists(path) {
		return Container{}, fmt.Errorf("read usage of cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	return result, nil
}

// less returns a-b, and 0 where the two were read at different moments and b
// is the greater.
func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// limit returns 0 for what v1 writes when there is no limit.
func limit(value uint64) uint64 {
	if value >= noLimit {
		return 0
	}
	return value
}

// accountant returns a controller whose hierarchy lists the processes.
func accountant(host *cgroup.Host) string {
	for _, controller := range []string{"pids", "memory", "cpuacct"} {
		if host.Has(controller) {
			return controller
		}
	}
	// On v2 freezing is always there.
	return "freezer"
}

// populated tells whether there are processes in a v2 cgroup or below it.
func (r *reader) populated(dir string) bool {
	return r.table(dir, "cgroup.events")["populated"] == 1
}

// pids counts threads by the controller, or by listing them where there is
// none, and processes by walking.
func (r *reader) pids(pids *Pids, controller, list string, unified bool) {
	pids.Processes = r.lines(list, "cgroup.procs")
	if r.brief {
		return
	}
	pids.Tasks = r.number(controller, "pids.current")
	pids.Limit = r.number(controller, "pids.max")
	if controller != "" {
		return
	}
	threads := "tasks"
	if unified {
		threads = "cgroup.threads"
	}
	pids.Tasks = r.lines(list, threads)
}

// lines counts the lines of a file of a cgroup and of those below it.
func (r *reader) lines(dir, file string) uint64 {
	count := uint64(strings.Count(r.text(dir, file), "\n"))
	for _, child := range r.children(dir) {
		count += r.lines(child, file)
	}
	return count
}

// children lists the cgroups right below one. The number of links of its
// directory tells whether there are any.
func (r *reader) children(dir string) []string {
	var stat syscall.Stat_t
	if r.err != nil || dir == "" || syscall.Stat(dir, &stat) != nil || stat.Nlink <= 2 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !absent(err) {
			r.err = err
		}
		return nil
	}
	var children []string
	for _, entry := range entries {
		if entry.IsDir() {
			children = append(children, filepath.Join(dir, entry.Name()))
		}
	}
	return children
}

// hugetlb reads the use of huge pages of every size that is not unused.
func (r *reader) hugetlb(dir string, unified bool) []Hugetlb {
	if dir == "" || r.err != nil {
		return nil
	}
	usage, peak := ".usage_in_bytes", ".max_usage_in_bytes"
	if unified {
		usage, peak = ".current", ".peak"
	}
	files, err := filepath.Glob(filepath.Join(dir, "hugetlb.*"+usage))
	if err != nil {
		r.err = err
		return nil
	}
	var list []Hugetlb
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), usage)
		size := strings.TrimPrefix(name, "hugetlb.")
		if strings.Contains(size, ".") {
			// The counters of reservations, hugetlb.2MB.rsvd.*.
			continue
		}
		list = append(list, Hugetlb{PageSize: size, Usage: r.number(dir, name+usage), Peak: r.number(dir, name+peak)})
	}
	return list
}
