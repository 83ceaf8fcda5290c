// Package harness gives a test a node that runs the real programs: berthd with its own root, state and socket, its
// berth-shim, an OCI runtime, a network, and a registry with a busybox image. Everything else has its
// default. When the test ends, everything is removed through the API, and the leak check has the last word.
package harness

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/isolation"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/node"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/programs"
	"github.com/berth-runtime/berth/test/registry"
)

const (
	// callDeadline bounds each CRI call of a test that sets no other.
	callDeadline = 2 * time.Minute
)

// Options choose what a test's node is like.
type Options struct {
	// Bin is the directory of the programs. Empty: those under test.
	Bin string
	// Handler is the default OCI runtime: "runc" or "crun". Empty leaves the choice to Berth.
	Handler string
	// Conflist, if not nil, gives a CNI configuration; the network is built in otherwise.
	Conflist func(testing.TB) string
	// Registry chooses how the registry authenticates.
	Registry registry.Options
	// Configure changes the configuration further.
	Configure func(*config.Config)
	// Managed gives the node a service manager, which keeps descriptors for berthd.
	Managed bool
	// Marks are further names that only this test uses, for the leak check.
	Marks []string
}

// Node is a node.Node that belongs to a test.
type Node struct {
	*node.Node
	// Registry serves Image.
	Registry *registry.Registry
	// Image is the reference of a busybox image in Registry. It is not pulled yet.
	Image string
	// Manager is the service manager of a node that is managed.
	Manager *Manager

	t testing.TB
	// systemd is set if systemd manages the cgroups.
	systemd bool
	// log is what the programs said until their end; shown is whether a report has it already.
	log   string
	shown bool
}

// Main runs the tests of a package that starts nodes, in namespaces of their own. Call it in TestMain with os.Exit.
func Main(m *testing.M) int {
	if isolation.Wanted() && !isolation.Active() {
		if _, err := programs.Prepare(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return isolation.Main(m)
}

// Start brings up a node for the length of t.
func Start(t testing.TB, opts Options) *Node {
	t.Helper()
	privilege.Root(t)
	bin := opts.Bin
	if bin == "" {
		var err error
		if bin, err = programs.Dir(); err != nil {
			t.Fatal(err)
		}
	}
	n := &Node{t: t}
	t.Cleanup(n.epilogue) // after the leak check
	leakcheck.Check(t, opts.Marks...)
	dir := leakcheck.Dir(t)
	// As /run and /var/lib are: root of a user namespace has to find its way.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	leakcheck.Mark(instance(filepath.Join(dir, "root")))
	n.Registry = registry.Run(t, opts.Registry)
	n.pushBusybox()

	var prepare func(*exec.Cmd) func()
	if opts.Managed {
		n.Manager = newManager(t, filepath.Join(dir, "notify"))
		prepare = n.Manager.prepare
	}
	inner, err := node.Start(t.Context(), node.Options{Bin: bin, Dir: dir, Prepare: prepare, Configure: func(c *config.Config) {
		c.Runtime.DefaultHandler = opts.Handler
		if driver := os.Getenv(driverVariable); driver != "" {
			c.Runtime.CgroupDriver = driver
		}
		c.Network.BuiltinSubnet = freeSubnets()
		if opts.Conflist != nil {
			writeFile(t, filepath.Join(c.Network.CNIConfDir, "10-test.conflist"), opts.Conflist(t))
		}
		trust(t, c.Image.RegistryConfigDir, n.Registry.Host)
		if opts.Configure != nil {
			opts.Configure(c)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	n.Node = inner
	t.Cleanup(n.end)
	n.askDriver()
	return n
}

// end takes everything away again. A failure shows how things stood.
func (n *Node) end() {
	if n.t.Failed() {
		n.dump()
	}
	if err := n.Close(context.WithoutCancel(n.t.Context())); err != nil {
		n.t.Errorf("end the node: %v", err)
	}
	if err := n.removeCgroups(); err != nil {
		n.t.Errorf("remove the cgroup of the test's pods: %v", err)
	}
	n.log = n.Log()
	for _, alarm := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
		if strings.Contains(n.log, alarm) {
			n.t.Errorf("a program says %q in its log", alarm)
		}
	}
}

// epilogue shows the whole log if the failure came with the end of the node or with the leak check.
func (n *Node) epilogue() {
	if n.t.Failed() && !n.shown {
		n.t.Logf("log of berthd:\n%s", n.log)
	}
}

// instance is the hash of a root that berthd has in its names on the host.
func instance(root string) string {
	sum := sha256.Sum256([]byte(root))
	return hex.EncodeToString(sum[:])[:8]
}

// freeSubnets picks addresses that a node of another test is unlikely to use at the same time.
func freeSubnets() []string {
	n := rand.N(1 << 16)
	return []string{fmt.Sprintf("10.%d.%d.0/24", 128+n>>9, n&0xff), fmt.Sprintf("fd62:e7c4:%x::/64", n)}
}

// trust lets the node speak plain HTTP to a registry.
func trust(t testing.TB, certsDir, host string) {
	t.Helper()
	writeFile(t, filepath.Join(certsDir, host, "hosts.toml"), fmt.Sprintf("server = %q\n", "http://"+host))
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (n *Node) pushBusybox() {
	n.t.Helper()
	image, err := imagefactory.Busybox()
	if err != nil {
		n.t.Fatal(err)
	}
	n.Image = n.Push("busybox", image)
}

// Push uploads an image or artifact to the node's registry, with the tag 1, and returns its reference.
func (n *Node) Push(repository string, a *imagefactory.Artifact) string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), callDeadline)
	defer cancel()
	to := imagefactory.Target{
		Host: n.Registry.Host, Repository: repository,
		Username: n.Registry.Username, Password: n.Registry.Password,
	}
	if err := imagefactory.Push(ctx, to, a, "1"); err != nil {
		n.t.Fatal(err)
	}
	return n.Registry.Host + "/" + repository + ":1"
}

// dump shows what helps to understand a failure.
func (n *Node) dump() {
	n.shown = true
	n.t.Logf("log of berthd:\n%s", n.Log())
	n.t.Logf("processes of the test:\n%s", leakcheck.Processes())
	for _, args := range [][]string{{"ip", "-br", "addr"}, {"nft", "list", "ruleset"}} {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(n.t.Context()), 10*time.Second)
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		cancel()
		n.t.Logf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Context is bounded by the deadline of a CRI call and by the end of the test.
func (n *Node) Context() context.Context {
	ctx, cancel := context.WithTimeout(n.t.Context(), callDeadline)
	n.t.Cleanup(cancel)
	return ctx
}

// KillDaemon ends berthd with SIGKILL and starts it again.
func (n *Node) KillDaemon() {
	n.t.Helper()
	if err := n.Restart(n.Context(), unix.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
}

// KillShim ends berth-shim with SIGKILL. The daemon starts another one.
func (n *Node) KillShim() {
	n.t.Helper()
	pid, err := n.ShimPID()
	if err != nil || pid == 0 {
		n.t.Fatalf("find berth-shim to kill it: %d, %v", pid, err)
	}
	if err := n.EndShim(unix.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
}

// Ready waits for the network and the runtime to be ready.
func (n *Node) Ready() {
	n.t.Helper()
	n.Eventually("the node is ready", func() error {
		status, err := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			return err
		}
		for _, c := range status.GetStatus().GetConditions() {
			if !c.GetStatus() {
				return fmt.Errorf("%s: %s", c.GetType(), c.GetMessage())
			}
		}
		return nil
	})
}

// Eventually waits until check returns nil and fails the test if it never does.
func (n *Node) Eventually(what string, check func() error) {
	n.t.Helper()
	const step = 20 * time.Millisecond
	var err error
	for end := time.Now().Add(callDeadline / 4); time.Now().Before(end); time.Sleep(step) {
		if err = check(); err == nil {
			return
		}
	}
	n.t.Fatalf("wait until %s: %v", what, err)
}
