package integration

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// localUser is a user of the host without rights.
const localUser = 65534

// asUser makes a command run as a user and a group of the host, without other groups.
func asUser(cmd *exec.Cmd, uid, gid uint32) *exec.Cmd {
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	return cmd
}

// buildWalker builds the walker where every user can execute it.
func buildWalker(t *testing.T, n *harness.Node) string {
	t.Helper()
	program := filepath.Join(n.Dir(), "walker")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./testdata/walker").CombinedOutput(); err != nil {
		t.Fatalf("build the walker: %v: %s", err, out)
	}
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	return program
}

// below are all paths below the root and the state directory of a node, mounts included, as root sees them.
func below(t *testing.T, n *harness.Node) []string {
	t.Helper()
	var paths []string
	for _, dir := range []string{n.Config.Root, n.Config.State} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed meanwhile
			}
			paths = append(paths, path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

// reachable are the rights that a user has below the root and the state directory, by path, where there are any.
func reachable(t *testing.T, n *harness.Node, walker string, uid, gid uint32) map[string]string {
	t.Helper()
	cmd := asUser(exec.CommandContext(t.Context(), walker), uid, gid)
	cmd.Stdin = strings.NewReader(strings.Join(below(t, n), "\x00") + "\x00")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("walk as user %d: %v", uid, err)
	}
	found := map[string]string{}
	met := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		rights, path, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		met[path] = true
		ours := strings.HasPrefix(path+"/", n.Config.Root+"/") || strings.HasPrefix(path+"/", n.Config.State+"/")
		if ours && rights != "---" {
			found[path] = rights
		}
	}
	for _, bundle := range bundles(t, n) {
		if rootfs := bundle + "/rootfs/bin"; !met[rootfs] {
			t.Fatalf("the walk does not meet %s", rootfs)
		}
	}
	return found
}

func bundleOf(n *harness.Node, id string) string {
	return filepath.Join(n.Config.State, "containers", id)
}

// bundles are the directories of all containers.
func bundles(t *testing.T, n *harness.Node) []string {
	t.Helper()
	found, err := filepath.Glob(bundleOf(n, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatal("there are no bundles")
	}
	return found
}

// wantClosed fails for every right of a user except to get through the state directory, and through own, where everything
// is theirs.
func wantClosed(t *testing.T, n *harness.Node, walker string, uid, gid uint32, own ...string) {
	t.Helper()
	passages := map[string]bool{n.Config.State: true, filepath.Join(n.Config.State, "containers"): true}
	reached := reachable(t, n, walker, uid, gid)
	for _, bundle := range own {
		if rights := reached[bundle+"/rootfs"]; !strings.HasSuffix(rights, "x") {
			t.Errorf("root of the pod has rights %q on its root file system", rights)
		}
	}
	for path, rights := range reached {
		allowed := passages[path] && rights == "--x"
		for _, bundle := range own {
			allowed = allowed || path == bundle && rights == "--x" || strings.HasPrefix(path+"/", bundle+"/rootfs/")
		}
		if !allowed {
			t.Errorf("user %d of group %d has rights %s on %s", uid, gid, rights, path)
		}
	}
}

// otherNamespace is userNamespace with IDs of its own.
func otherNamespace(c *runtimeapi.PodSandboxConfig) {
	userNamespace(c)
	for _, m := range []*runtimeapi.IDMapping{
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Uids[0], c.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Gids[0],
	} {
		m.HostId = podRoot + 1<<16
	}
}

// TestLocalUsersAreKeptOut: no user of the host gets through the root and the state directory to anything of a pod, and
// root of a user namespace to its own containers only; also with directories of an earlier version.
func TestLocalUsersAreKeptOut(t *testing.T) {
	eachHandler(t, testLocalUsers)
}

func testLocalUsers(t *testing.T, n *harness.Node) {
	walker := buildWalker(t, n)
	ref := n.Push("data", data(t))
	volume, err := pull(n, ref)
	if err != nil {
		t.Fatal(err)
	}
	sleep := []string{"sleep", "1000"}
	plain := n.RunPod().Start(sleep, imageMount("/volume", volume, ""))
	sharedPod := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	sharedPod.Start([]string{"sh"}, shared, func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true })
	given := filepath.Join(n.Dir(), "given")
	if err := os.Mkdir(given, 0o777); err != nil {
		t.Fatal(err)
	}
	mappedPod := n.RunPod(userNamespace)
	own := mappedPod.Start(sleep, likePod(mappedPod), mapped(given, "/given"), imageMount("/volume", volume, ""))
	otherPod := n.RunPod(otherNamespace)
	other := otherPod.Start(sleep, likePod(otherPod))

	ctx, cancel := context.WithCancel(n.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: plain.ID, Cmd: []string{"sh", "-c", "touch /ready && sleep 1000"}})
		ended <- err
	}()
	defer func() {
		cancel()
		if err := <-ended; err == nil {
			t.Error("the command ended before it was canceled")
		}
	}()
	for _, c := range []*harness.Container{plain, own, other} {
		c.Output("sh", "-c", "cp /bin/busybox /setuid && chmod 4755 /setuid && mkdir -m 777 /open")
	}
	n.Eventually("the command runs", func() error {
		_, err := os.Stat(bundleOf(n, plain.ID) + "/rootfs/ready")
		return err
	})

	check := func(t *testing.T) {
		t.Helper()
		wantClosed(t, n, walker, localUser, localUser)
		wantClosed(t, n, walker, podRoot, podRoot, bundleOf(n, own.ID))
		wantClosed(t, n, walker, localUser, podRoot+1<<16, bundleOf(n, other.ID))
		for _, c := range []*harness.Container{plain, own, other} {
			program := bundleOf(n, c.ID) + "/rootfs/setuid"
			err := asUser(exec.CommandContext(t.Context(), program, "id", "-u"), localUser, localUser).Run()
			if !errors.Is(err, unix.EACCES) {
				t.Errorf("execution of a setuid program of a container: %v, want %v", err, unix.EACCES)
			}
		}
	}
	check(t)
	if err := n.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	openAll(t, n)
	if found := reachable(t, n, walker, localUser, localUser); found[bundleOf(n, plain.ID)+"/rootfs/open"] == "" {
		t.Fatal("no user gets through the directories of an earlier version")
	}
	if err := n.StartDaemon(n.Context()); err != nil {
		t.Fatal(err)
	}
	check(t)
	for _, c := range []*harness.Container{plain, own, other} {
		equal(t, "a command in a container", c.Output("echo", "runs"), "runs")
	}
	again := mappedPod.Start(sleep, likePod(mappedPod))
	equal(t, "a new container of the pod", again.Output("echo", "runs"), "runs")
}

// openAll gives the directories down to the root file systems the modes that earlier versions gave them.
func openAll(t *testing.T, n *harness.Node) {
	t.Helper()
	for _, dir := range append(bundles(t, n), n.Config.Root, n.Config.State, filepath.Join(n.Config.State, "containers"), filepath.Join(n.Config.State, "pods")) {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
}
