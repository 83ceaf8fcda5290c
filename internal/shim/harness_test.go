package shim_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/test/isolation"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/programs"
)

// testTimeout bounds every wait of these tests.
const testTimeout = 20 * time.Second

// clientEnv makes the test binary a client of its own, to be killed: see TestMain.
const clientEnv = "BERTH_SHIM_TEST_CLIENT"

var binary string // berth-shim

// TestMain builds the program under test. Containers of a killed supervisor fall
// to this process, since it is a child subreaper; tests reap them.
func TestMain(m *testing.M) {
	if args := os.Getenv(clientEnv); args != "" {
		runClient(args)
		return
	}
	if !privilege.Package() {
		return
	}
	dir, err := programs.Prepare()
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "berth-shim")
	if err := isolation.Enter(); err != nil {
		panic(err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	os.Exit(isolation.Leave(m.Run()))
}

// host is a state directory with a client.
type host struct {
	t      testing.TB
	state  string
	name   string
	binary string // berth-shim
	client *shim.Client
	cgroup *cgroup.Host

	mu    sync.Mutex
	exits map[string]shim.Exit
	news  chan struct{}
	wg    sync.WaitGroup
	lazy  atomic.Bool // do not reap now
}

// runtimes runs a test with each OCI runtime.
func runtimes(t *testing.T, test func(t *testing.T, h *host, handler ociruntime.Handler)) {
	for _, name := range []string{"runc", "crun", "shim-v2"} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			test(t, h, h.handler(name))
		})
	}
}

func newHost(t testing.TB) *host {
	t.Helper()
	mountHugetlb(t)
	name := "t" + strings.ToLower(rand.Text()[:8])
	leakcheck.Check(t, name)
	state, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(state); err != nil {
			t.Error(err)
		}
	})
	h := &host{t: t, state: state, name: name, binary: binary, exits: map[string]shim.Exit{}, news: make(chan struct{})}
	if h.cgroup, err = cgroup.Detect(); err != nil {
		t.Fatal(err)
	}
	h.reapAlways()
	t.Cleanup(h.close)
	h.connect()
	return h
}

func (h *host) options() shim.Options {
	return shim.Options{State: h.state, Binary: h.binary, Instance: h.name, Log: slog.New(slog.NewTextHandler(testWriter{h.t}, nil))}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// connect makes a client and collects its exits.
func (h *host) connect() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	client, err := shim.Connect(ctx, h.options())
	if err != nil {
		h.dump()
		h.t.Fatalf("connect: %v", err)
	}
	h.client = client
	h.wg.Go(func() {
		for e := range client.Exits() {
			h.mu.Lock()
			h.exits[e.ID] = e
			close(h.news)
			h.news = make(chan struct{})
			h.mu.Unlock()
		}
	})
}

// disconnect ends the client, as a daemon that restarts does.
func (h *host) disconnect() {
	h.t.Helper()
	if err := h.client.Close(); err != nil {
		h.t.Errorf("close client: %v", err)
	}
	h.wg.Wait()
	h.mu.Lock()
	h.exits = map[string]shim.Exit{}
	h.mu.Unlock()
}

// close deletes every container, ends the supervisor and reaps what fell to this process.
func (h *host) close() {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if h.t.Failed() {
		h.dump()
	}
	list, err := h.client.List(ctx)
	if err != nil {
		h.t.Errorf("list: %v", err)
	}
	for _, c := range list {
		if err := h.client.Delete(ctx, c.ID); err != nil {
			h.t.Errorf("delete: %v", err)
		}
	}
	pid := h.client.PID()
	if err := h.client.Shutdown(ctx); err != nil {
		h.dump()
		h.t.Errorf("shut down: %v", err)
		if pid > 0 { // or else none answers
			_ = syscall.Kill(pid, syscall.SIGKILL) // it is in the way of the next test
		}
		_ = h.client.Close()
	}
	h.wg.Wait()
	h.eventually("the supervisor ends", func() bool {
		reapAdopted()
		return !alive(pid)
	})
	reapAdopted()
	if text, err := os.ReadFile(filepath.Join(h.state, "shim/shim.log")); err != nil || bytes.Contains(text, []byte("DATA RACE")) || bytes.Contains(text, []byte("panic:")) {
		h.t.Errorf("supervisor's log (%v):\n%s", err, text)
	}
	if err := h.cgroup.Remove("/" + h.name); err != nil {
		h.t.Errorf("remove cgroup: %v", err)
	}
}

func (h *host) dump() {
	text, err := os.ReadFile(filepath.Join(h.state, "shim/shim.log"))
	h.t.Logf("supervisor's log (%v):\n%s", err, text)
}

// eventually polls until the condition holds.
func (h *host) eventually(what string, condition func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(testTimeout); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.dump()
			h.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// alive tells whether a process exists and is no zombie.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	return len(fields) > 0 && fields[0][0] != 'Z'
}

// reapAlways reaps what falls to this process until the test ends, like a proper
// PID 1: the kernel lets the init of a PID namespace go only when every process in
// there has been reaped, and the parent of an exec is outside.
func (h *host) reapAlways() {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if !h.lazy.Load() {
					reapAdopted()
				}
			}
		}
	}()
	h.t.Cleanup(func() {
		close(stop)
		<-stopped
	})
}

// reapAdopted reaps zombies that are children of this process. A supervisor that
// was started here is waited for by its client as well; the first of both reaps it.
func reapAdopted() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if pid <= 0 || err != nil {
			return
		}
	}
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *host) start(req shim.StartRequest) shim.Started {
	h.t.Helper()
	started, err := h.client.Start(h.ctx(), req)
	if err != nil {
		h.dump()
		h.t.Fatalf("start: %v", err)
	}
	return started
}

// exit waits for the exit of a container.
func (h *host) exit(id string) shim.Exit {
	h.t.Helper()
	deadline := time.After(testTimeout)
	for {
		h.mu.Lock()
		e, ok := h.exits[id]
		news := h.news
		h.mu.Unlock()
		if ok {
			return e
		}
		select {
		case <-news:
		case <-deadline:
			h.dump()
			h.t.Fatalf("no exit of %s", id)
		}
	}
}

var recordPattern = regexp.MustCompile(`^(\S{30}) (stdout|stderr) ([FP]) (.*)$`)

// parseLog returns the content of a container's log by stream.
func parseLog(t testing.TB, text []byte) map[string]string {
	t.Helper()
	content := map[string]*strings.Builder{"stdout": {}, "stderr": {}}
	for line := range bytes.Lines(text) {
		m := recordPattern.FindSubmatch(bytes.TrimSuffix(line, []byte("\n")))
		if m == nil {
			t.Fatalf("not a log record: %.100q", line)
		}
		content[string(m[2])].Write(m[4])
		if m[3][0] == 'F' {
			content[string(m[2])].WriteByte('\n')
		}
	}
	return map[string]string{"stdout": content["stdout"].String(), "stderr": content["stderr"].String()}
}

// log reads what is in a container's log by now. A reader may see the beginning of a write that is under way; it is left out.
func (h *host) log(id string) map[string]string {
	h.t.Helper()
	text, err := os.ReadFile(filepath.Join(h.state, id+".log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	return parseLog(h.t, text[:bytes.LastIndexByte(text, '\n')+1])
}

// killShim kills the supervisor and waits until it is gone.
func (h *host) killShim() {
	h.t.Helper()
	pid := h.client.PID()
	h.must(syscall.Kill(pid, syscall.SIGKILL))
	h.eventually("the killed supervisor is gone", func() bool { return !alive(pid) })
}

// nothingLeft checks that a container which was not started, or was deleted, has left nothing.
func (h *host) nothingLeft(id string) {
	h.t.Helper()
	for _, dir := range []string{"shim/c/" + id, "runtime/runc/" + id, "runtime/crun/" + id} {
		if _, err := os.Lstat(filepath.Join(h.state, dir)); !errors.Is(err, os.ErrNotExist) {
			h.t.Errorf("%s is left: %v", dir, err)
		}
	}
	if h.cgroup.Exists("/" + h.name + "/" + id) {
		h.t.Errorf("the cgroup of %s is left", id)
	}
	list, err := h.client.List(h.ctx())
	h.must(err)
	for _, c := range list {
		if c.ID == id {
			h.t.Errorf("%s is listed: %+v", id, c)
		}
	}
}

func mountHugetlb(t testing.TB) {
	t.Helper()
	const root = "/sys/fs/cgroup"
	controllers, err := os.ReadFile(filepath.Join(root, "unified/cgroup.controllers"))
	if errors.Is(err, os.ErrNotExist) || err == nil && !bytes.Contains(controllers, []byte("hugetlb")) {
		return
	}
	if err != nil {
		t.Fatalf("read controllers of the v2 hierarchy: %v", err)
	}
	dir := filepath.Join(root, "hugetlb")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("cgroup", dir, "cgroup", 0, "hugetlb"); err != nil && !errors.Is(err, syscall.EBUSY) {
		t.Fatalf("mount hugetlb controller: %v", err)
	}
}
