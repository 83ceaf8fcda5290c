// Package apparmor loads the AppArmor profile of containers whose request asks
// for the runtime's default.
package apparmor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/text"
)

// Default is the name of the profile.
const Default = "berth-default"

const (
	// loadTimeout bounds apparmor_parser.
	loadTimeout = 20 * time.Second
	// maxComplaint bounds what an error quotes of it.
	maxComplaint = 2 << 10

	enabledFile = "/sys/module/apparmor/parameters/enabled"
	includeDir  = "/etc/apparmor.d/"
)

// Enabled tells whether the kernel enforces AppArmor profiles.
func Enabled() (bool, error) {
	text, err := os.ReadFile(enabledFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the state of AppArmor: %w", err)
	}
	return strings.HasPrefix(string(text), "Y"), nil
}

// Load gives the profile to the kernel, in the place of one with that name. The
// error is of kind ErrFailedPrecondition if this host cannot do that.
func Load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	// From nothing but its input, and into the kernel only: no cache, no files.
	parser := exec.CommandContext(ctx, "apparmor_parser", "--replace", "--skip-cache")
	parser.Stdin = strings.NewReader(profile(exists))
	var said bytes.Buffer
	parser.Stdout, parser.Stderr = &said, &said
	if err := parser.Run(); err != nil {
		complaint := text.Cut(strings.TrimSpace(said.String()), maxComplaint)
		return fmt.Errorf("load AppArmor profile %s with apparmor_parser: %w: %s: %w", Default, err, complaint, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// profile is what the kernel is given. A container may do what its capabilities,
// devices and namespaces let it do, but for what would change the host through
// the kernel's own file systems, mounts, and processes outside of the profile.
func profile(has func(file string) bool) string {
	head, base := "@{PROC}=/proc/\n", ""
	if has(includeDir + "tunables/global") {
		head = "#include <tunables/global>\n"
	}
	if has(includeDir + "abstractions/base") {
		base = "  #include <abstractions/base>\n"
	}
	return head + "profile " + Default + " flags=(attach_disconnected,mediate_deleted) {\n" + base + rules + "}\n"
}

const rules = `
  network,
  capability,
  file,
  umount,

  # The daemon, its supervisor and the OCI runtimes stop containers.
  signal (receive) peer=unconfined,
  signal (receive) peer=/usr/bin/berth-shim,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send, receive) peer=` + Default + `,
  ptrace (trace, read, tracedby, readby) peer=` + Default + `,

  deny mount,

  # Of /proc a container may write what belongs to its processes and what is its
  # namespaces' own: net and the shared memory limits of kernel.
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9s],s[^ey],s[ey][^ls]}*/** w,
  deny @{PROC}/sys/[^kn]** w,
  deny @{PROC}/sys/n[^e]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s]**,s[^h]**,sh[^m]**} w,
  deny @{PROC}/{sysrq-trigger,mem,kmem,kcore} rwklx,

  # Of /sys it may write its cgroups.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
`
