package bench

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// steps collects how long each step of a pod's life takes.
type steps struct {
	order []string
	took  map[string][]time.Duration
}

func (s *steps) time(name string, do func()) {
	begin := time.Now()
	do()
	if s.took == nil {
		s.took = map[string][]time.Duration{}
	}
	if s.took[name] == nil {
		s.order = append(s.order, name)
	}
	s.took[name] = append(s.took[name], time.Since(begin))
}

// report gives the median of each step.
func (s *steps) report(b *testing.B) {
	b.Helper()
	b.ReportMetric(0, "ns/op") // the sum of all steps says nothing
	for _, name := range s.order {
		took := s.took[name]
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, name+"-ms")
	}
}

// BenchmarkLife takes pods one after the other through their life, with each network and each OCI runtime.
func BenchmarkLife(b *testing.B) {
	networks := []struct {
		name   string
		list   func(testing.TB) string
		change func(*runtimeapi.PodSandboxConfig)
	}{
		{"builtin", nil, func(*runtimeapi.PodSandboxConfig) {}},
		{"cni", harness.PortmapList("1.0.0"), func(*runtimeapi.PodSandboxConfig) {}},
		{"host", nil, func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		}},
	}
	for _, handler := range []string{"runc", "crun"} {
		for _, network := range networks {
			b.Run(handler+"/"+network.name, func(b *testing.B) {
				n := harness.Start(b, harness.Options{Handler: handler, Conflist: network.list})
				n.Pull()
				var s steps
				for b.Loop() {
					life(b, n, &s, network.change)
				}
				s.report(b)
			})
		}
	}
}

func life(b *testing.B, n *harness.Node, s *steps, change func(*runtimeapi.PodSandboxConfig)) {
	b.Helper()
	var p *harness.Pod
	var c *harness.Container
	s.time("run-pod", func() { p = n.RunPod(change) })
	config := n.ContainerConfig([]string{"sleep", "1000"})
	config.Linux.SecurityContext.NamespaceOptions.Network = p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork()
	s.time("create+start", func() {
		var err error
		if c, err = p.Create(config); err != nil {
			b.Fatal(err)
		}
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
	})
	s.time("exec", func() { c.Exec("true") })
	s.time("stop-container", func() { c.Stop(0) })
	s.time("remove-container", c.Remove)
	s.time("stop-pod", p.Stop)
	s.time("remove-pod", p.Remove)
}

// BenchmarkIdlePods measures what a pod with one container costs beyond its workload: memory of berthd and berth-shim, and
// what listing figures of all of them takes.
func BenchmarkIdlePods(b *testing.B) {
	const pods = 30
	n := harness.Start(b, harness.Options{})
	n.Pull()
	for range pods { // what grows once, with the first pods, is not a pod's
		n.RunPod().Start([]string{"sleep", "1000"})
	}
	before := memory(b, n)
	for range pods {
		n.RunPod().Start([]string{"sleep", "1000"})
	}
	perPod := float64(memory(b, n)-before) / pods / 1024
	var s steps
	for b.Loop() {
		s.time("list-stats", func() {
			if _, err := n.Runtime.ListContainerStats(n.Context(), &runtimeapi.ListContainerStatsRequest{}); err != nil {
				b.Fatal(err)
			}
		})
	}
	s.report(b)
	b.ReportMetric(perPod, "KiB/pod")
}

// memory is the private memory and the share of what is shared (PSS) of berthd and berth-shim, in bytes.
func memory(b *testing.B, n *harness.Node) int {
	b.Helper()
	shim, err := n.ShimPID()
	if err != nil {
		b.Fatal(err)
	}
	sum := 0
	for _, pid := range []int{n.PID(), shim} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); f[0] == "Pss:" {
				kib, err := strconv.Atoi(f[1])
				if err != nil {
					b.Fatal(err)
				}
				sum += kib << 10
			}
		}
	}
	return sum
}
