package namespace

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// everything asks for one namespace of each kind.
func everything(t testing.TB) Request {
	dir := filepath.Join(leakcheck.Dir(t), "ns")
	t.Cleanup(func() {
		if err := Remove(context.Background(), dir); err != nil {
			t.Errorf("Remove: %v", err)
		}
	})
	return Request{Dir: dir, Net: true, IPC: true, UTS: true, Hostname: "berth-test"}
}

func identity(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st.Ino
}

// The namespaces are new ones, configured, and the process stays in its own.
func TestCreateMakesConfiguredNamespaces(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	req := everything(t)
	req.Sysctls = map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "80",
		"kernel.shm_rmid_forced":              "1",
		"fs.mqueue.msg_max":                   "17",
		"net.ipv4.conf.eth0.forwarding":       "1", // no such device yet
	}
	before := map[string]uint64{}
	for _, kind := range []string{"net", "ipc", "uts"} {
		before[kind] = identity(t, "/proc/self/ns/"+kind)
	}
	paths, err := Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for kind, path := range map[string]string{"net": paths.Net, "ipc": paths.IPC, "uts": paths.UTS} {
		if got := identity(t, path); got == before[kind] {
			t.Errorf("%s namespace is that of the host", kind)
		}
		if got := identity(t, "/proc/self/ns/"+kind); got != before[kind] {
			t.Errorf("this process moved to another %s namespace", kind)
		}
	}
	for kind, flag := range map[string]int{"net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC} {
		enter(t, filepath.Join(req.Dir, kind), flag, func() error {
			for name, want := range req.Sysctls {
				inNet := strings.HasPrefix(name, "net.")
				if linkOf(name) != "" || inNet != (kind == "net") {
					continue
				}
				raw, err := os.ReadFile(SysctlPath(name))
				if got := strings.TrimSpace(string(raw)); err != nil || got != want {
					t.Errorf("%s is %q (%v), want %q", name, got, err, want)
				}
			}
			return nil
		})
	}
	enter(t, paths.UTS, unix.CLONE_NEWUTS, func() error {
		var name unix.Utsname
		if err := unix.Uname(&name); err != nil {
			return err
		}
		if got := unix.ByteSliceToString(name.Nodename[:]); got != "berth-test" {
			t.Errorf("host name is %q", got)
		}
		return nil
	})
}

func enter(t testing.TB, path string, flag int, fn func() error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := onThread(flag, func() error { return errors.Join(unix.Setns(int(f.Fd()), flag), fn()) }); err != nil {
		t.Fatal(err)
	}
}

// Loopback is up, for IPv4 and IPv6, and a listener made by Do is inside the pod only.
func TestDoListensInsideThePod(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	req := everything(t)
	paths, err := Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"127.0.0.1:4711", "[::1]:4711"} {
		var inside net.Listener
		if err := Do(paths.Net, func() (err error) { inside, err = net.Listen("tcp", address); return err }); err != nil {
			t.Fatal(err)
		}
		if err := Do(paths.Net, func() error {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				return err
			}
			return conn.Close()
		}); err != nil {
			t.Errorf("dial %s inside: %v", address, err)
		}
		if conn, err := net.Dial("tcp", address); err == nil {
			t.Errorf("%s answers outside of the pod", address)
			_ = conn.Close()
		}
		if err := inside.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDoReturnsTheErrorOfItsFunction(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	req := everything(t)
	paths, err := Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	sentinel := errors.New("from inside")
	if err := Do(paths.Net, func() error { return sentinel }); !errors.Is(err, sentinel) {
		t.Errorf("got %v", err)
	}
	for _, path := range []string{filepath.Join(req.Dir, "absent"), "/proc/self/status"} {
		if err := Do(path, func() error { t.Error("ran"); return nil }); !errdefs.IsNotFound(err) {
			t.Errorf("Do(%s) = %v, want not found", path, err)
		}
	}
}

func TestRemoveIsIdempotent(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	req := everything(t)
	paths, err := Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(t.Context(), req.Dir); err != nil {
			t.Fatal(err)
		}
		if exists(req.Dir) || Exists(paths.Net) {
			t.Error("something is left")
		}
		if p, ok := Probe(req.Dir); ok || p != (Paths{}) {
			t.Errorf("Probe = %v, %t", p, ok)
		}
	}
}

// Whatever point a crash interrupts, Create starts over; a finished set is replaced as well, a foreign file is not removed.
func TestCreateAfterACrash(t *testing.T) {
	privilege.Root(t)
	leftovers := map[string]func(t *testing.T, req Request){
		"EmptyDirectory": func(t *testing.T, req Request) { must(t, os.Mkdir(req.Dir, 0o700)) },
		"MountPoints": func(t *testing.T, req Request) {
			must(t, os.Mkdir(req.Dir, 0o700))
			for _, file := range []string{netFile, ipcFile, utsFile} {
				must(t, makeMountPoint(filepath.Join(req.Dir, file)))
			}
		},
		"OnePinned": func(t *testing.T, req Request) {
			must(t, os.Mkdir(req.Dir, 0o700))
			for _, file := range []string{netFile, ipcFile} {
				must(t, makeMountPoint(filepath.Join(req.Dir, file)))
			}
			must(t, bind("/proc/self/ns/net", filepath.Join(req.Dir, netFile)))
		},
		"Finished": func(t *testing.T, req Request) {
			_, err := Create(t.Context(), req)
			must(t, err)
		},
		"PinnedTwice": func(t *testing.T, req Request) {
			paths, err := Create(t.Context(), req)
			must(t, err)
			must(t, bind("/proc/self/ns/net", paths.Net))
		},
	}
	for name, leave := range leftovers {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			req := everything(t)
			leave(t, req)
			if _, ok := Probe(req.Dir); ok != (name == "Finished" || name == "PinnedTwice") {
				t.Errorf("Probe of what was left = %t", ok)
			}
			paths, err := Create(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			want := Paths{Net: filepath.Join(req.Dir, "net"), IPC: filepath.Join(req.Dir, "ipc"), UTS: filepath.Join(req.Dir, "uts")}
			if got, ok := Probe(req.Dir); !ok || got != want || paths != want {
				t.Errorf("Create = %v, Probe = %v, %t", paths, got, ok)
			}
			if identity(t, paths.Net) == identity(t, "/proc/self/ns/net") {
				t.Error("the network namespace of the host is pinned")
			}
		})
	}
}

func TestForeignFilesAreKept(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	req := everything(t)
	must(t, os.Mkdir(req.Dir, 0o700))
	foreign := filepath.Join(req.Dir, "foreign")
	must(t, os.WriteFile(foreign, []byte("x"), 0o600))
	if _, err := Create(t.Context(), req); err == nil {
		t.Error("Create accepted a directory with a foreign file")
	}
	if !exists(foreign) {
		t.Error("foreign file is gone")
	}
	must(t, os.Remove(foreign))
}

func TestBadRequestsLeaveNothing(t *testing.T) {
	privilege.Root(t)
	cases := map[string]struct {
		change func(*Request)
		names  string
	}{
		"NoNamespace":     {func(r *Request) { r.Net, r.IPC, r.UTS, r.Hostname = false, false, false, "" }, "no namespace"},
		"RelativeDir":     {func(r *Request) { r.Dir = "ns" }, `"ns"`},
		"LongHostname":    {func(r *Request) { r.Hostname = strings.Repeat("h", 65) }, "64"},
		"HostnameNoUTS":   {func(r *Request) { r.UTS = false }, "berth-test"},
		"NodeWide":        {func(r *Request) { r.Sysctls = map[string]string{"vm.swappiness": "1"} }, "vm.swappiness"},
		"KernelHostname":  {func(r *Request) { r.Sysctls = map[string]string{"kernel.hostname": "x"} }, "kernel.hostname"},
		"HostNetwork":     {func(r *Request) { r.Net = false; r.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"} }, "net.ipv4.ip_forward"},
		"HostIPC":         {func(r *Request) { r.IPC = false; r.Sysctls = map[string]string{"kernel.sem": "1"} }, "kernel.sem"},
		"Unknown":         {func(r *Request) { r.Sysctls = map[string]string{"net.ipv4.nonsense": "1"} }, "net.ipv4.nonsense"},
		"BadValue":        {func(r *Request) { r.Sysctls = map[string]string{"net.ipv4.ip_forward": "many"} }, "many"},
		"Traversal":       {func(r *Request) { r.Sysctls = map[string]string{"net/../vm/swappiness": "1"} }, "malformed"},
		"DottedTraversal": {func(r *Request) { r.Sysctls = map[string]string{"net.//.vm.swappiness": "1"} }, "malformed"},
		"EmptyName":       {func(r *Request) { r.Sysctls = map[string]string{"": "1"} }, "malformed"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			req := everything(t)
			dir := req.Dir
			c.change(&req)
			_, err := Create(t.Context(), req)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.names) {
				t.Errorf("got %v, want an invalid argument that names %s", err, c.names)
			}
			if exists(dir) {
				t.Errorf("%s is left", dir)
			}
		})
	}
}

func TestApplyLinkSysctls(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	req := everything(t)
	paths, err := Create(t.Context(), req)
	must(t, err)
	if err := ApplyLinkSysctls(paths.Net, map[string]string{"net.ipv4.ip_forward": "1"}); err != nil {
		t.Error(err)
	}
	err = ApplyLinkSysctls(paths.Net, map[string]string{"net.ipv4.conf.eth7.forwarding": "1"})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "eth7") {
		t.Errorf("got %v", err)
	}
}

func TestPinPID(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	dir := filepath.Join(t.TempDir(), "ns")
	t.Cleanup(func() { must(t, Remove(context.Background(), dir)) })
	for range 2 {
		path, err := PinPID(dir, os.Getpid())
		must(t, err)
		if got, want := identity(t, path), identity(t, "/proc/self/ns/pid"); got != want {
			t.Errorf("pinned %d, want %d", got, want)
		}
		if p, ok := Probe(dir); ok || p.PID != path {
			t.Errorf("Probe = %v, %t", p, ok)
		}
	}
	if _, err := PinPID(dir, 1<<30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("PID of no process: %v", err)
	}
	if exists(filepath.Join(dir, pidFile)) {
		t.Error("mount point is left")
	}
}

// Threads that were inside a pod come back or end; none of them serves other goroutines in the wrong namespace.
func TestNoThreadStaysInside(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	home := identity(t, "/proc/self/ns/net")
	for range 20 {
		req := everything(t)
		paths, err := Create(t.Context(), req)
		must(t, err)
		must(t, Do(paths.Net, func() error { runtime.Gosched(); return nil }))
		must(t, DoNew(func() error { runtime.Gosched(); return nil }))
		must(t, Remove(t.Context(), req.Dir))
	}
	threads, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, thread := range threads {
		var st unix.Stat_t
		err := unix.Stat("/proc/self/task/"+thread.Name()+"/ns/net", &st)
		if err == nil && st.Ino != home {
			t.Errorf("thread %s is in another network namespace", thread.Name())
		}
	}
}

func FuzzSysctlName(f *testing.F) {
	for _, name := range []string{"net.ipv4.ip_forward", "net/ipv4/conf/eth0.1/forwarding", "net.ipv4.conf.eth0/1.x", "..", "kernel.shmmax", "/", "net.", "a\x00b"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		req := Request{Dir: "/d", Net: true, IPC: true, UTS: true}
		if req.checkSysctl(name) != nil {
			return
		}
		path := SysctlPath(name)
		if !strings.HasPrefix(path, "/proc/sys/net/") && !strings.HasPrefix(path, "/proc/sys/kernel/") && !strings.HasPrefix(path, "/proc/sys/fs/mqueue/") {
			t.Errorf("%q leads to %s", name, path)
		}
	})
}

func BenchmarkCreateRemove(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "ns")
	req := Request{Dir: dir, Net: true, IPC: true, UTS: true, Hostname: "bench"}
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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
