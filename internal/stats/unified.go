package stats

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/berth-runtime/berth/internal/cgroup"
)

const (
	nanosPerMicro = 1000

	// The two scales of CPU weight: shares of v1 go from 2 to 262144, weights
	// of v2 from 1 to 10000. OCI runtimes map them linearly.
	minShares, sharesSpan = 2, 262142
	minWeight, weightSpan = 1, 9999
)

// readUnified reads the files of cgroup v2. dir gives the directory of the
// cgroup for a controller that is available, "" otherwise.
func readUnified(r *reader, c *Container, dir func(string) string) {
	// Time is accounted without the cpu controller too, and the pseudo
	// controller for freezing is always there.
	base := dir("freezer")
	stat := r.table(base, "cpu.stat")
	c.CPU.UsageNanos = stat["usage_usec"] * nanosPerMicro
	c.CPU.UserNanos = stat["user_usec"] * nanosPerMicro
	c.CPU.SystemNanos = stat["system_usec"] * nanosPerMicro
	if limited := cgroup.LimitDir(base); limited != base {
		stat = r.table(limited, "cpu.stat") // only who has a quota counts how it held
	}
	c.CPU.Periods = stat["nr_periods"]
	c.CPU.Throttled = stat["nr_throttled"]
	c.CPU.ThrottledNanos = stat["throttled_usec"] * nanosPerMicro
	r.unifiedMemory(c, dir("memory"))
	if r.brief {
		return
	}
	if words := strings.Fields(r.text(cgroup.LimitDir(dir("cpu")), "cpu.max")); len(words) == 2 {
		c.CPU.Quota, c.CPU.Period = r.parse("cpu.max", words[0]), r.parse("cpu.max", words[1])
	}
	if weight := r.number(cgroup.LimitDir(dir("cpu")), "cpu.weight"); weight > 0 {
		c.CPU.Shares = minShares + (weight-minWeight)*sharesSpan/weightSpan
	}
	r.unifiedMemoryDetails(&c.Memory, dir("memory"))
	c.IO = r.unifiedIO(dir("io"))
}

func (r *reader) unifiedMemory(c *Container, dir string) {
	if dir == "" {
		return
	}
	stat := r.table(dir, "memory.stat")
	usage := r.number(dir, "memory.current")
	c.Memory = Memory{
		Usage:           usage,
		WorkingSet:      less(usage, stat["inactive_file"]),
		RSS:             stat["anon"],
		Limit:           r.number(cgroup.LimitDir(dir), "memory.max"),
		Cache:           stat["file"],
		MappedFile:      stat["file_mapped"],
		Kernel:          stat["kernel"],
		PageFaults:      stat["pgfault"],
		MajorPageFaults: stat["pgmajfault"],
		OwnPageFaults:   stat["pgfault"], OwnMajorPageFaults: stat["pgmajfault"],
	}
	c.Memory.setAvailable()
	if text := r.text(dir, "memory.swap.current"); text != "" {
		most := strings.TrimSpace(r.text(cgroup.LimitDir(dir), "memory.swap.max"))
		c.Swap = &Swap{
			Usage:   r.parse("memory.swap.current", strings.TrimSpace(text)),
			Limited: most != "" && most != "max",
			Limit:   r.parse("memory.swap.max", most),
		}
		c.Swap.Available = less(c.Swap.Limit, c.Swap.Usage)
	}
}

func (r *reader) unifiedMemoryDetails(m *Memory, dir string) {
	m.Peak = r.number(dir, "memory.peak")
	events := r.table(dir, "memory.events")
	m.FailCount, m.OOMEvents, m.OOMKilled = events["max"], events["oom"], events["oom_kill"]
}

// unifiedIO reads lines "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
func (r *reader) unifiedIO(dir string) []IODevice {
	devices := ioTable{}
	for line := range strings.Lines(r.text(dir, "io.stat")) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		device := devices.at(words[0])
		if device == nil {
			continue
		}
		targets := map[string]*uint64{
			"rbytes": &device.ReadBytes, "wbytes": &device.WriteBytes, "dbytes": &device.DiscardBytes,
			"rios": &device.ReadOps, "wios": &device.WriteOps, "dios": &device.DiscardOps,
		}
		for _, word := range words[1:] {
			key, value, _ := strings.Cut(word, "=")
			if target, ok := targets[key]; ok {
				*target = r.parse("io.stat", value)
			}
		}
	}
	return devices.list()
}

// pressure reads a file of pressure stall information, nil if it is absent or
// switched off.
func (r *reader) pressure(dir, file string) *PSI {
	text := r.text(dir, file)
	if text == "" {
		return nil
	}
	psi := &PSI{}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		target := &psi.Some
		if words[0] == "full" {
			target = &psi.Full
		}
		for _, word := range words[1:] {
			r.pressureField(target, file, word)
		}
	}
	return psi
}

// pressureField reads one "avg10=0.00" or "total=12", the latter in
// microseconds.
func (r *reader) pressureField(target *Pressure, file, word string) {
	key, value, _ := strings.Cut(word, "=")
	if key == "total" {
		target.TotalNanos = r.parse(file, value) * nanosPerMicro
		return
	}
	averages := map[string]*float64{"avg10": &target.Avg10, "avg60": &target.Avg60, "avg300": &target.Avg300}
	average, ok := averages[key]
	if !ok {
		return
	}
	number, err := strconv.ParseFloat(value, 64)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%s: %w", file, err)
	}
	*average = number
}
