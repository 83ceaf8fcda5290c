package spec

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/warning"
)

const (
	pidsMax = "pids.max"
	swapMax = "memory.swap.max"
	noLimit = "max"
)

// newCgroup is what a new v2 cgroup has.
var newCgroup = map[string]string{
	"cpu.max": noLimit, "memory.high": noLimit, "memory.low": "0", "memory.max": noLimit, "memory.min": "0",
	"memory.oom.group": "0", pidsMax: noLimit, swapMax: noLimit,
}

// unifiedKey is what names of v2 control files look like.
var unifiedKey = regexp.MustCompile(`^[a-z0-9_]+(\.[A-Za-z0-9_]+)+$`)

func validateUnified(field string, values map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !unifiedKey.MatchString(key) {
			return invalid(field, key, "is not the name of a cgroup v2 control file")
		}
		if strings.HasPrefix(key, "cgroup.") && !strings.HasPrefix(key, "cgroup.max.") {
			return invalid(field, key, "controls the cgroup itself, which belongs to Berth")
		}
		if err := checkText(field+"."+key, values[key]); err != nil {
			return err
		}
	}
	if value, ok := values[pidsMax]; ok {
		if _, err := pidsLimit(value); err != nil {
			return invalid(field+"."+pidsMax, value, "must be a positive number or max")
		}
	}
	return nil
}

// applyUnified adds raw v2 values to the typed limits. On a v2 host they are
// passed on, and replace the typed limit of the same kind. On others pids.max
// has a typed form; anything else but a plain "no limit" is a warning.
func applyUnified(field string, result *specs.LinuxResources, values map[string]string, host Host, warnings *warning.List) error {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		value := values[key]
		controller, _, _ := strings.Cut(key, ".")
		switch {
		case key == pidsMax && host.hasController(controller):
			limit, err := pidsLimit(value)
			if err != nil {
				return invalid(field+"."+key, value, "must be a positive number or max")
			}
			if limit == unlimited && host.onUnified() {
				result.Unified = withValue(result.Unified, key, noLimit)
			} else {
				result.Pids = &specs.LinuxPids{Limit: &limit}
			}
		case key == swapMax && !host.SwapLimit:
			// Without accounting nothing can be limited, and "0" and "max" are
			// what kubelet sends to pods that do not care.
			if value != "0" && value != noLimit {
				warnings.Add(field+"."+key, value, "is ignored: this host does not account swap")
			}
		case host.onUnified() && (controller == "cgroup" || host.hasController(controller)):
			result.Unified = withValue(result.Unified, key, value)
			dropTyped(result, key)
		case meansNothing(key, value):
		case host.onUnified():
			return unavailable(field, key, "the cgroup v2 controller "+controller+" is not available on this host")
		default:
			warnings.Add(field+"."+key, value, "is ignored: it needs cgroup v2, and this host runs cgroup "+host.Cgroup.String())
		}
	}
	return nil
}

func withValue(values map[string]string, key, value string) map[string]string {
	if values == nil {
		values = map[string]string{}
	}
	values[key] = value
	return values
}

// pidsLimit reads a number of tasks, with -1 for "max".
func pidsLimit(value string) (int64, error) {
	value = strings.TrimSpace(value)
	if value == noLimit {
		return unlimited, nil
	}
	limit, err := strconv.ParseInt(value, 10, 64)
	if err == nil && limit < 1 {
		// With 0 not even the first process could start.
		err = strconv.ErrRange
	}
	return limit, err
}

// meansNothing tells whether a value is what a cgroup has anyway: kubelet
// sends such values to undo what an earlier one of it may have set.
func meansNothing(key, value string) bool {
	_, file, _ := strings.Cut(key, ".")
	switch value = strings.TrimSpace(value); {
	case strings.HasSuffix(file, "min"), strings.HasSuffix(file, "low"), file == "oom.group":
		return value == "0"
	case strings.HasSuffix(file, "max"), strings.HasSuffix(file, "high"):
		return value == noLimit || strings.HasPrefix(value, noLimit+" ")
	default:
		return value == ""
	}
}

// dropTyped removes the typed limit that a raw value replaces: OCI runtimes
// differ in which of the two they write last.
func dropTyped(result *specs.LinuxResources, key string) {
	cpu, memory := result.CPU, result.Memory
	switch key {
	case "cpu.weight":
		if cpu != nil {
			cpu.Shares = nil
		}
	case "cpu.max":
		if cpu != nil {
			cpu.Quota, cpu.Period = nil, nil
		}
	case "cpuset.cpus":
		if cpu != nil {
			cpu.Cpus = ""
		}
	case "cpuset.mems":
		if cpu != nil {
			cpu.Mems = ""
		}
	case "memory.max":
		result.Memory = nil
	case swapMax:
		if memory != nil {
			memory.Swap = nil
		}
	default:
		size, ok := strings.CutPrefix(key, "hugetlb.")
		size, isMax := strings.CutSuffix(size, ".max")
		if ok && isMax {
			result.HugepageLimits = slices.DeleteFunc(result.HugepageLimits, func(have specs.LinuxHugepageLimit) bool {
				return have.Pagesize == size
			})
		}
	}
}
