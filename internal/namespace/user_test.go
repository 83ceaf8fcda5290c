package namespace

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

var userRange = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 3 << 16, Size: 1 << 16}}

// owner is the user namespace that a namespace belongs to.
func owner(t testing.TB, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	must(t, err)
	above := os.NewFile(uintptr(fd), "owner")
	defer above.Close()
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	return st.Ino
}

// The namespaces of a pod belong to its user namespace, whose sysctls are set by the user that may set each, and no process is left.
func TestUserNamespaceOwnsTheOthers(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	req := everything(t)
	req.UIDs, req.GIDs = userRange, userRange
	req.Sysctls = map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "80",
		"kernel.shm_rmid_forced":              "1",
		"fs.mqueue.msg_max":                   "17",
	}
	paths, err := Create(t.Context(), req)
	must(t, err)
	if paths.User == "" || identity(t, paths.User) == identity(t, "/proc/self/ns/user") {
		t.Fatalf("user namespace %q", paths.User)
	}
	for kind, path := range map[string]string{"net": paths.Net, "ipc": paths.IPC, "uts": paths.UTS} {
		if got, want := owner(t, path), identity(t, paths.User); got != want {
			t.Errorf("%s namespace belongs to %d, want %d", kind, got, want)
		}
	}
	for kind, flag := range map[string]int{"net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC} {
		enter(t, filepath.Join(req.Dir, kind), flag, func() error {
			for name, want := range req.Sysctls {
				raw, err := os.ReadFile(SysctlPath(name))
				if got := strings.TrimSpace(string(raw)); strings.HasPrefix(name, "net.") == (kind == "net") && (err != nil || got != want) {
					t.Errorf("%s is %q (%v), want %q", name, got, err, want)
				}
			}
			return nil
		})
	}
	enter(t, paths.UTS, unix.CLONE_NEWUTS, func() error {
		var name unix.Utsname
		must(t, unix.Uname(&name))
		if got := unix.ByteSliceToString(name.Nodename[:]); got != "berth-test" {
			t.Errorf("host name is %q", got)
		}
		return nil
	})
	if got, ok := Probe(req.Dir); !ok || got != paths {
		t.Errorf("Probe = %v, %t", got, ok)
	}
}

// Root of the pod owns the message queues of its IPC namespace: without that it could not change the directory.
func TestUserNamespaceOwnsQueues(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	req := everything(t)
	req.UIDs, req.GIDs = userRange, userRange
	paths, err := Create(t.Context(), req)
	must(t, err)
	enter(t, paths.IPC, unix.CLONE_NEWIPC, func() error {
		queues, err := openQueues()
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Fstat(int(queues.Fd()), &st))
		if st.Uid != userRange[0].HostID || st.Gid != userRange[0].HostID {
			t.Errorf("they belong to %d:%d, want root of the pod", st.Uid, st.Gid)
		}
		return queues.Close()
	})
}

// An SELinux label that the host does not know, as any where there is no SELinux, is refused by its name. What known ones do
// is seen by TestSELinux.
func TestUnknownLabel(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	req := everything(t)
	req.Label = "no_u:no_r:no_t:s0"
	if _, err := Create(t.Context(), req); err == nil || !strings.Contains(err.Error(), req.Label) {
		t.Errorf("got %v, want an error with the label", err)
	}
	if exists(req.Dir) {
		t.Error("something is left")
	}
}

// A pod on the network of the host has a user namespace alone.
func TestUserNamespaceAlone(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	req := everything(t)
	req.Net, req.IPC, req.UTS, req.Hostname = false, false, false, ""
	req.UIDs, req.GIDs = userRange, userRange
	paths, err := Create(t.Context(), req)
	must(t, err)
	if want := (Paths{User: filepath.Join(req.Dir, "user")}); paths != want {
		t.Errorf("got %v, want %v", paths, want)
	}
}

// A mapping that the kernel does not take, and one without the other half, leave nothing.
func TestBadMappings(t *testing.T) {
	privilege.Root(t)
	for name, c := range map[string]struct {
		uids, gids []specs.LinuxIDMapping
		kind       func(error) bool
	}{
		"OnlyUsers":   {userRange, nil, errdefs.IsInvalidArgument},
		"Overlapping": {slices.Concat(userRange, userRange), userRange, errdefs.IsFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			req := everything(t)
			req.UIDs, req.GIDs = c.uids, c.gids
			if _, err := Create(t.Context(), req); !c.kind(err) {
				t.Errorf("got %v", err)
			}
			if exists(req.Dir) {
				t.Error("something is left")
			}
		})
	}
}

// A value that no user may set in a pod is refused with its name, also when it was tried as root of the pod.
func TestUserNamespaceRefusesSysctl(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	req := everything(t)
	req.UIDs, req.GIDs = userRange, userRange
	for _, name := range []string{"kernel.sem", "net.ipv4.ip_forward"} {
		req.Sysctls = map[string]string{name: "many"}
		if _, err := Create(t.Context(), req); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want an invalid argument that names %s", err, name)
		}
	}
	if got := os.Geteuid(); got != 0 {
		t.Errorf("this process became user %d", got)
	}
}

// A range of groups is that of the pod, and one beyond its groups ends with them.
func TestUserNamespaceGroupRange(t *testing.T) {
	privilege.Root(t)
	for value, want := range map[string]string{
		"0 100":        fmt.Sprintf("%d\t%d", 3<<16, 3<<16+100),
		"0 2147483647": fmt.Sprintf("%d\t%d", 3<<16, 4<<16-1),
		"1 0":          "1\t0",
	} {
		t.Run(value, func(t *testing.T) {
			leakcheck.Check(t)
			req := everything(t)
			req.UIDs, req.GIDs = userRange, userRange
			req.Sysctls = map[string]string{groupRange: value}
			paths, err := Create(t.Context(), req)
			must(t, err)
			must(t, Do(paths.Net, func() error {
				raw, err := os.ReadFile(SysctlPath(groupRange))
				if got := strings.TrimSpace(string(raw)); got != want {
					t.Errorf("it is %q for the host, want %q", got, want)
				}
				return err
			}))
		})
	}
}

// NewUser gives a namespace that no process is in, with the mapping that was asked for.
func TestNewUser(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	f, err := NewUser(userRange, userRange)
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Ino == identity(t, "/proc/self/ns/user") {
		t.Error("it is that of the host")
	}
	must(t, f.Close())
	if err := UserSupported(); err != nil {
		t.Error(err)
	}
	want := fmt.Sprintf("%d", st.Ino)
	entries, err := filepath.Glob("/proc/[0-9]*/ns/user")
	must(t, err)
	for _, e := range entries {
		if link, err := os.Readlink(e); err == nil && strings.Contains(link, want) {
			t.Errorf("%s is still in it", e)
		}
	}
}

func BenchmarkCreateRemoveUser(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "ns")
	req := Request{Dir: dir, Net: true, IPC: true, UTS: true, Hostname: "bench", UIDs: userRange, GIDs: userRange}
	for b.Loop() {
		if _, err := Create(b.Context(), req); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := Remove(b.Context(), dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
