package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/cgroup/systemd"
)

// driverVariable names the cgroup driver to test with: systemd or cgroupfs. It is Berth's own choice otherwise.
const driverVariable = "BERTH_CGROUP_DRIVER"

// askDriver learns the cgroup driver from the node, as the kubelet does.
func (n *Node) askDriver() {
	n.t.Helper()
	answer, err := n.Runtime.RuntimeConfig(n.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil {
		n.t.Fatalf("ask for the cgroup driver: %v", err)
	}
	n.systemd = answer.GetLinux().GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD
	if want := os.Getenv(driverVariable); want != "" && (want == cgroup.Systemd.String()) != n.systemd {
		n.t.Fatalf("the node's cgroup driver is %v, want %s", answer.GetLinux().GetCgroupDriver(), want)
	}
}

// cgroupParent is the cgroup of the test's pods, as a pod names it. The kubelet makes and removes such cgroups, so the
// harness removes it too.
func (n *Node) cgroupParent() string {
	if n.systemd { // a dash would put it beneath another slice
		return "/berthtest_" + filepath.Base(n.Dir()) + ".slice"
	}
	return "/berth-test-" + filepath.Base(n.Dir())
}

// removeCgroups removes the cgroup of the test's pods. What Berth has left in it makes that fail.
func (n *Node) removeCgroups() error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	var errs []error
	for _, m := range mounts {
		dir := filepath.Join(m.Mountpoint, n.cgroupParent())
		if n.systemd {
			errs = append(errs, isEmpty(dir))
		} else if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if n.systemd && errors.Join(errs...) == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(n.t.Context()), callDeadline)
		defer cancel()
		errs = append(errs, systemd.Stop(ctx, path.Base(n.cgroupParent())))
	}
	return errors.Join(errs...)
}

// isEmpty is an error if a cgroup has others in it. It need not exist.
func isEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var left []string
	for _, e := range entries {
		if e.IsDir() {
			left = append(left, e.Name())
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("%s still has %s", dir, strings.Join(left, ", "))
	}
	return nil
}
