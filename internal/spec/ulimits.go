package spec

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/warning"
)

const (
	noFile = "nofile"
	// openFilesLimit is the file of the kernel that bounds the limit of open files.
	openFilesLimit = "/proc/sys/fs/nr_open"
)

// standardUlimits are the limits of containers unless configured. They are those that containers get from containerd and CRI-O
// under systemd with their own units. All are set in each container, so that none comes from the service unit or from the
// process that started the supervisor. Only sigpending is left alone: the kernel derives it from the size of the memory.
var standardUlimits = []config.Ulimit{
	{Name: "as", Soft: config.Unlimited, Hard: config.Unlimited},
	{Name: "core", Soft: config.Unlimited, Hard: config.Unlimited},
	{Name: "cpu", Soft: config.Unlimited, Hard: config.Unlimited},
	{Name: "data", Soft: config.Unlimited, Hard: config.Unlimited},
	{Name: "fsize", Soft: config.Unlimited, Hard: config.Unlimited},
	{Name: "locks", Soft: config.Unlimited, Hard: config.Unlimited},
	{Name: "memlock", Soft: 8 << 20, Hard: 8 << 20},
	{Name: "msgqueue", Soft: 819200, Hard: 819200},
	{Name: "nice"},
	// A soft limit above 1024 breaks programs that use select(2), and those that close every possible descriptor are slow.
	// Programs that need more raise it up to the hard limit.
	{Name: noFile, Soft: 1024, Hard: 1 << 20},
	// It counts the processes of a user on the whole host, so it would not protect one container from another.
	{Name: "nproc", Soft: config.Unlimited, Hard: config.Unlimited},
	{Name: "rss", Soft: config.Unlimited, Hard: config.Unlimited},
	{Name: "rtprio"},
	{Name: "rttime", Soft: config.Unlimited, Hard: config.Unlimited},
	{Name: "stack", Soft: 8 << 20, Hard: config.Unlimited},
}

var ulimitResources = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
	"locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK, "msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE,
	noFile: unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// readUlimits lays the configured limits over the standard ones. Those above what the kernel lets this process set are
// lowered: else no container could start.
func (d *Defaults) readUlimits(configured []string, warnings *warning.List) error {
	limits := slices.Clone(standardUlimits)
	for _, text := range configured {
		limit, err := config.ParseUlimit(text)
		if err != nil {
			return &SettingError{"ulimits", err.Error()}
		}
		limits = slices.DeleteFunc(limits, func(old config.Ulimit) bool { return old.Name == limit.Name })
		limits = append(limits, limit)
	}
	slices.SortFunc(limits, func(a, b config.Ulimit) int { return cmp.Compare(a.Name, b.Name) })
	for _, limit := range limits {
		most, reason, err := mostOf(limit.Name)
		if err != nil {
			return err
		}
		if limit.Hard > most {
			warnings.Add("pod.ulimits", ulimitText(limit), fmt.Sprintf("is lowered to %s: %s", limitText(most), reason))
		}
		d.rlimits = append(d.rlimits, specs.POSIXRlimit{
			Type: "RLIMIT_" + strings.ToUpper(limit.Name), Soft: min(limit.Soft, most), Hard: min(limit.Hard, most),
		})
	}
	d.rlimitsText = ulimitsText(d.rlimits)
	return nil
}

// mostOf returns the greatest hard limit that this process can give, and why it is no greater.
func mostOf(name string) (most uint64, reason string, err error) {
	var own unix.Rlimit
	if err := unix.Getrlimit(ulimitResources[name], &own); err != nil {
		return 0, "", fmt.Errorf("read own limit %s: %w", name, err)
	}
	most, reason = config.Unlimited, ""
	capabilities, err := ownCapabilities()
	if err != nil {
		return 0, "", err
	}
	mapped, err := inUserNamespace()
	if err != nil {
		return 0, "", err
	}
	if mapped || !slices.Contains(capabilities, "CAP_SYS_RESOURCE") {
		most, reason = own.Max, "the daemon has no more itself, and no CAP_SYS_RESOURCE"
	}
	if name != noFile {
		return most, reason, nil
	}
	data, err := os.ReadFile(openFilesLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return most, reason, nil
	}
	if err != nil {
		return 0, "", err
	}
	bound, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, "", fmt.Errorf("read %s: %w", openFilesLimit, err)
	}
	if bound < most {
		most, reason = bound, openFilesLimit+" has this value"
	}
	return most, reason, nil
}

func ulimitText(l config.Ulimit) string {
	return l.Name + "=" + limitText(l.Soft) + ":" + limitText(l.Hard)
}

func limitText(value uint64) string {
	if value == config.Unlimited {
		return "unlimited"
	}
	return strconv.FormatUint(value, 10)
}

// ulimitsText shows limits as they are configured.
func ulimitsText(limits []specs.POSIXRlimit) string {
	texts := make([]string, len(limits))
	for i, l := range limits {
		name := strings.ToLower(strings.TrimPrefix(l.Type, "RLIMIT_"))
		texts[i] = ulimitText(config.Ulimit{Name: name, Soft: l.Soft, Hard: l.Hard})
	}
	return strings.Join(texts, " ")
}

// OpenFiles is the soft limit of open files, 0 if there is none.
func (d *Defaults) OpenFiles() uint64 {
	for _, l := range d.rlimits {
		if l.Type == "RLIMIT_NOFILE" {
			return l.Soft
		}
	}
	return 0
}
