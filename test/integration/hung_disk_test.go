package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/disk"
	"github.com/berth-runtime/berth/test/harness"
)

// burst writes numbered lines quickly, and then ends with 9.
func burst(lines int) []string {
	return []string{"sh", "-c", fmt.Sprintf("i=0; while test $i -lt %d; do echo line $i; i=$((i+1)); done; exit 9", lines)}
}

// TestHungLogDisk: while the disk of one pod's logs hangs, calls for that pod end by their deadlines, and everything else
// goes on. Once it answers, each line is in the logs once.
func TestHungLogDisk(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	d := disk.New(t)
	healthy := n.RunPod()
	counting := healthy.Start(counter)
	hung := n.RunPod(func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = filepath.Join(d.Dir, "logs") })
	const lines = 100_000
	writing, stopped := hung.Start(burst(lines)), hung.Start(counter)
	for _, c := range []*harness.Container{writing, stopped} {
		n.Eventually("a line is in the log", func() error { return logHas(c, "stdout F line 10") })
	}
	shim, err := n.ShimPID()
	if err != nil {
		t.Fatal(err)
	}
	thaw := d.Freeze()
	n.Eventually("the supervisor waits for the disk", func() error { return disk.Awaited(shim) })
	wantReads(t, n, hung, writing)
	wantOthersGoOn(t, n, healthy, counting)

	equal(t, "a command beside the hung log", writing.Output("echo", "there"), "there")
	late := hung.Start([]string{"echo", "late"})
	_, err = hung.Create(n.ContainerConfig([]string{"true"}, func(c *runtimeapi.ContainerConfig) { c.LogPath = "new/0.log" }))
	wantError(t, err, codes.Unavailable, "log_path", d.Dir, "does not end")
	stopped.Stop(1)
	late.Exited()
	wantOthersGoOn(t, n, healthy, counting)

	thaw()
	equal(t, "exit code", writing.Exited().GetExitCode(), 9)
	n.Eventually("the rest is in the logs", func() error {
		if err := logHas(late, "stdout F late"); err != nil {
			return err
		}
		return logHas(writing, fmt.Sprintf("stdout F line %d", lines-1))
	})
	counting.Stop(10)
	for _, c := range []*harness.Container{writing, stopped, counting} {
		wantWholeLog(t, c)
	}
	equal(t, "lines in the log", len(writing.LogLines()), lines)
}

// wantReads makes every call that reads a pod or a container.
func wantReads(t *testing.T, n *harness.Node, p *harness.Pod, c *harness.Container) {
	t.Helper()
	for name, call := range map[string]func(ctx context.Context) error{
		"ListPodSandbox": func(ctx context.Context) error {
			_, err := n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return err
		},
		"ListContainers": func(ctx context.Context) error {
			_, err := n.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return err
		},
		"PodSandboxStatus": func(ctx context.Context) error {
			_, err := n.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
			return err
		},
		"ContainerStatus": func(ctx context.Context) error {
			_, err := n.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
			return err
		},
		"ListContainerStats": func(ctx context.Context) error {
			_, err := n.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return err
		},
		"ListPodSandboxStats": func(ctx context.Context) error {
			_, err := n.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		},
		"Status": func(ctx context.Context) error {
			_, err := n.Runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
			return err
		},
	} {
		if err := call(n.Context()); err != nil {
			t.Errorf("%s beside a hung log: %v", name, err)
		}
	}
}

// wantOthersGoOn runs a container with another log disk from its start to its end, and wants its neighbor's log to grow.
func wantOthersGoOn(t *testing.T, n *harness.Node, p *harness.Pod, neighbor *harness.Container) {
	t.Helper()
	before := len(neighbor.LogLines())
	c := p.Start(counter)
	equal(t, "a command in another pod", c.Output("echo", "there"), "there")
	c.Stop(10)
	equal(t, "exit code in another pod", c.Status().GetExitCode(), 9)
	wantWholeLog(t, c)
	c.Remove()
	n.Eventually("another pod's log grows", func() error {
		if now := len(neighbor.LogLines()); now <= before {
			return fmt.Errorf("it has %d lines, it had %d", now, before)
		}
		return nil
	})
}
