// Package bench measures what kubelet waits for, on a node of real programs.
// Figures are medians of one run on one machine: compare them with those of
// another runtime or an earlier commit only when both were taken in one go.
//
//	go test ./test/bench -bench . -benchtime 30x
package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// watch collects the times of the operations of a pod's life.
type watch struct {
	b     *testing.B
	times map[string][]time.Duration
}

// measure runs an operation and notes how long it took.
func (w *watch) measure(name string, operation func() error) {
	w.b.Helper()
	begin := time.Now()
	err := operation()
	w.times[name] = append(w.times[name], time.Since(begin))
	if err != nil {
		w.b.Fatalf("%s: %v", name, err)
	}
}

// report prints the median of each operation.
func (w *watch) report() {
	w.b.ReportMetric(0, "ns/op") // the whole life is no figure
	for name, times := range w.times {
		slices.Sort(times)
		w.b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, name+"-p50-ms")
	}
}

// BenchmarkPodLife takes one pod after the other from run to remove, with each
// OCI runtime and with each kind of network.
func BenchmarkPodLife(b *testing.B) {
	for _, handler := range []string{"crun", "runc"} {
		for network, conflist := range map[string]func(testing.TB) string{
			"builtin": nil, "cni": harness.PortmapList("1.0.0"),
		} {
			b.Run(handler+"-"+network, func(b *testing.B) {
				podLife(b, harness.Start(b, harness.Options{Handler: handler, Conflist: conflist}))
			})
		}
	}
}

func podLife(b *testing.B, n *harness.Node) {
	w := &watch{b: b, times: map[string][]time.Duration{}}
	n.Pull()
	for i := 0; b.Loop(); i++ {
		cfg := n.PodConfig(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = fmt.Sprintf("bench-%d", i) })
		var pod, container string
		w.measure("run-pod", func() error {
			answer, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
			pod = answer.GetPodSandboxId()
			return err
		})
		w.measure("create", func() error {
			answer, err := n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{
				PodSandboxId: pod, SandboxConfig: cfg, Config: n.ContainerConfig([]string{"sleep", "1000"}),
			})
			container = answer.GetContainerId()
			return err
		})
		w.measure("start", func() error {
			_, err := n.Runtime.StartContainer(n.Context(), &runtimeapi.StartContainerRequest{ContainerId: container})
			return err
		})
		w.measure("exec", func() error {
			_, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"/bin/true"}})
			return err
		})
		w.measure("stop", func() error {
			_, err := n.Runtime.StopContainer(n.Context(), &runtimeapi.StopContainerRequest{ContainerId: container})
			return err
		})
		w.measure("stop-pod", func() error {
			_, err := n.Runtime.StopPodSandbox(n.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
			return err
		})
		w.measure("remove", func() error {
			_, err := n.Runtime.RemoveContainer(n.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: container})
			return err
		})
		w.measure("remove-pod", func() error {
			_, err := n.Runtime.RemovePodSandbox(n.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		})
	}
	w.report()
}

// BenchmarkPodMemory keeps pods and tells what each costs in memory of ours,
// beyond its workload, and how long lists and stats of all of them take.
func BenchmarkPodMemory(b *testing.B) {
	n := harness.Start(b, harness.Options{})
	w := &watch{b: b, times: map[string][]time.Duration{}}
	n.Pull()
	first := n.RunPod()
	first.Start([]string{"sleep", "1000"})
	daemonBefore, shimBefore := ourMemory(b, n)
	pods := 0
	for b.Loop() {
		pods++
		n.RunPod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = fmt.Sprintf("bench-%d", pods) }).Start([]string{"sleep", "1000"})
	}
	daemonAfter, shimAfter := ourMemory(b, n)
	for range 20 {
		w.measure("list", func() error {
			_, err := n.Runtime.ListContainers(n.Context(), &runtimeapi.ListContainersRequest{})
			return err
		})
		w.measure("stats", func() error {
			_, err := n.Runtime.ListContainerStats(n.Context(), &runtimeapi.ListContainerStatsRequest{})
			return err
		})
	}
	w.report()
	b.ReportMetric(float64(daemonAfter-daemonBefore)/float64(pods), "daemon-KiB/pod")
	b.ReportMetric(float64(shimAfter-shimBefore)/float64(pods), "shim-KiB/pod")
}

// ourMemory is the memory of berthd and berth-shim in KiB.
func ourMemory(b *testing.B, n *harness.Node) (daemon, shim int) {
	b.Helper()
	pid, err := n.ShimPID()
	if err != nil {
		b.Fatal(err)
	}
	return pss(b, n.PID()), pss(b, pid)
}

// pss reads the proportional set size of a process in KiB.
func pss(b *testing.B, pid int) int {
	b.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				b.Fatal(err)
			}
			return kib
		}
	}
	b.Fatalf("process %d has no Pss", pid)
	return 0
}
