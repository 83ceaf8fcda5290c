package handlers

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/shimv2"
)

const (
	// retryAfter is how long the first failure of a handler counts. Each further one counts twice as
	// long, up to maxRetryAfter.
	retryAfter    = 10 * time.Second
	maxRetryAfter = time.Hour
	// maxRequestRetryAfter is the longest that a failure counts for a request that names the handler.
	maxRequestRetryAfter = time.Minute

	// cgroupDir and cgroupControllers show how the host set up cgroups.
	cgroupDir         = "/sys/fs/cgroup"
	cgroupControllers = "/proc/cgroups"
)

// retry probes a handler again whose failure counts no longer, or whose program, configuration or cgroup
// set-up has changed since. Most bounds how long a failure counts. Preconditions: mu is held.
func (s *Set) retry(e *entry, most time.Duration) {
	if e.probing != nil || e.info.Problem == "" || s.ctx.Err() != nil {
		return
	}
	after := maxRetryAfter
	if doublings := e.failures - 1; doublings < 16 {
		after = min(after, retryAfter<<max(doublings, 0))
	}
	if time.Since(e.tried) > min(after, most) || s.opts.Fingerprint(e.info.Handler) != e.fingerprint {
		s.probe(e)
	}
}

// Fingerprint describes what the outcome of a probe depends on: the program, the files that the options
// name, and the cgroup set-up of the host.
func Fingerprint(h ociruntime.Handler) string {
	program := h.Path
	if h.Type == ociruntime.TypeShimV2 {
		program = shimv2.ProgramName(program)
	}
	path, err := exec.LookPath(program)
	parts := []string{fmt.Sprint(path, err), describe(path)}
	for _, name := range slices.Sorted(maps.Keys(h.Options)) {
		value := h.Options[name]
		if name == shimv2.OptionBinaryName {
			value, _ = exec.LookPath(value) // what is missing is described as missing
		}
		parts = append(parts, name, value, describe(value))
	}
	return strings.Join(append(parts, cgroupSetUp()), "\n")
}

// describe tells a file from another one at the same path, and from its earlier contents.
func describe(path string) string {
	if !filepath.IsAbs(path) {
		return ""
	}
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	stat, _ := info.Sys().(*syscall.Stat_t)
	if stat == nil || info.Mode()&fs.ModeType != 0 {
		return info.Mode().String()
	}
	return fmt.Sprint(stat.Dev, stat.Ino, info.Size(), info.ModTime().UnixNano(), stat.Ctim)
}

func cgroupSetUp() string {
	var parts []string
	var root unix.Statfs_t
	if err := unix.Statfs(cgroupDir, &root); err != nil {
		return err.Error()
	}
	parts = append(parts, fmt.Sprint(root.Type))
	entries, _ := os.ReadDir(cgroupDir)
	for _, entry := range entries {
		var hierarchy unix.Statfs_t
		if root.Type != unix.CGROUP2_SUPER_MAGIC && unix.Statfs(filepath.Join(cgroupDir, entry.Name()), &hierarchy) == nil {
			parts = append(parts, fmt.Sprint(entry.Name(), hierarchy.Type))
		}
	}
	// A host without one of the files is described by the others.
	controllers, _ := os.ReadFile(filepath.Join(cgroupDir, "cgroup.controllers"))
	return strings.Join(append(parts, string(controllers), hierarchies()), "\n")
}

// hierarchies lists the controllers of the kernel with the hierarchy that each is in. The number of
// cgroups, which is there too, changes all the time.
func hierarchies() string {
	text, _ := os.ReadFile(cgroupControllers)
	var parts []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 4 {
			parts = append(parts, fields[0], fields[1], fields[3])
		}
	}
	return strings.Join(parts, " ")
}

// varying is what differs between two reports of one problem: the names of probe containers, numbers.
var varying = regexp.MustCompile(`berth-probe-[a-z0-9]+|[0-9]+`)

// logFailure logs a problem once, and again only when it has changed. Preconditions: mu is held.
func (s *Set) logFailure(e *entry, err error) {
	level := s.opts.Log.Warn
	if kind := varying.ReplaceAllString(err.Error(), "#"); kind == e.logged {
		level = s.opts.Log.Debug
	} else {
		e.logged = kind
	}
	level("runtime handler unavailable", "handler", e.info.Handler.Name, "failures", e.failures, "problem", err)
}
