package checkpoint

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protowire"
)

// maxStatus bounds a file of /proc; the status of a thread with NGROUPS_MAX groups has 720 KiB.
const maxStatus = 1 << 20

// VerifyProcesses compares the rights of every thread of running processes with what a spec grants, as
// the kernel reports them. An error of kind ErrPermissionDenied names the first that has more. IDs are
// those of the caller's user namespace. Processes that end meanwhile are left out.
func VerifyProcesses(ctx context.Context, pids []int, spec *specs.Spec) error {
	allowed := granted(spec)
	for _, pid := range pids {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		if err != nil {
			return err
		}
		for _, task := range tasks {
			if err := ctx.Err(); err != nil {
				return err
			}
			t, err := readTask(task)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue
			}
			if err != nil {
				return fmt.Errorf("read rights of process %d: %w", pid, err)
			}
			err = allowed.check(t)
			if err == nil && spec.Process.NoNewPrivileges && !t.noNewPrivileges {
				err = errors.New("linux.security_context.no_new_privs: a thread can gain privileges, the request forbids it")
			}
			if err != nil {
				return fmt.Errorf("process %d: %w: %w", pid, err, errdefs.ErrPermissionDenied)
			}
		}
	}
	return nil
}

// readTask reads the rights of a live thread from its directory in /proc.
func readTask(dir string) (*thread, error) {
	status, err := readBounded(filepath.Join(dir, "status"))
	if err != nil {
		return nil, err
	}
	t := &thread{ids: map[protowire.Number]uint32{}, capabilities: map[protowire.Number][]uint32{}}
	lines := bufio.NewScanner(bytes.NewReader(status))
	lines.Buffer(nil, maxStatus)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if err := t.addStatus(name, strings.Fields(value)); err != nil {
			return nil, fmt.Errorf("%s of status: %w", name, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	profile, err := readBounded(filepath.Join(dir, "attr", "current"))
	if errors.Is(err, syscall.EINVAL) { // no security module has labels
		return t, nil
	}
	// AppArmor adds the mode: "berth-default (enforce)".
	t.profile, _, _ = strings.Cut(strings.TrimRight(string(profile), "\x00\n"), " (")
	return t, err
}

// addStatus takes a line of /proc/PID/status.
func (t *thread) addStatus(name string, values []string) error {
	base := map[string]int{"Uid": 10, "Gid": 10, "Groups": 10, "Seccomp": 10, "NoNewPrivs": 10, "CapInh": 16, "CapPrm": 16, "CapEff": 16, "CapBnd": 16}[name]
	if base == 0 {
		return nil
	}
	for i, text := range values {
		n, err := strconv.ParseUint(text, base, 64)
		if err != nil {
			return err
		}
		switch name {
		case "Uid": // real, effective, saved, file system; creds_entry has users and groups in turns
			t.ids[fieldUID+protowire.Number(2*i)] = uint32(n)
		case "Gid":
			t.ids[fieldUID+1+protowire.Number(2*i)] = uint32(n)
		case "Groups":
			t.groups = append(t.groups, uint32(n))
		case "Seccomp":
			t.seccomp = n
		case "NoNewPrivs":
			t.noNewPrivileges = n == 1
		default:
			field := fieldInherited + protowire.Number(map[string]int{"CapInh": 0, "CapPrm": 1, "CapEff": 2, "CapBnd": 3}[name])
			t.capabilities[field] = []uint32{uint32(n), uint32(n >> 32)}
		}
	}
	return nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading only
	return io.ReadAll(io.LimitReader(f, maxStatus))
}
