package upgrade

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/proc"
	"github.com/berth-runtime/berth/test/harness"
)

// commandDeadline bounds one command of `berth`.
const commandDeadline = time.Minute

// workload is pods that run while the version changes.
type workload struct {
	t *testing.T
	n *harness.Node
	// shared is a pod with one PID namespace.
	pod, shared *harness.Pod
	// counter writes numbered lines, reader repeats what it reads, sleeper is in the shared pod; ended has ended before the
	// change, and created starts after it.
	counter, reader, sleeper, ended, created *harness.Container
	// processes are the first processes of the containers that run.
	processes map[string]proc.Stat
	checks    int
}

func newWorkload(t *testing.T, n *harness.Node) *workload {
	t.Helper()
	w := &workload{t: t, n: n, pod: n.RunPod(), processes: map[string]proc.Stat{}}
	w.shared = n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	w.counter = w.pod.Start([]string{"sh", "-c", "trap 'exit 9' TERM; i=0; while true; do echo line $i; i=$((i+1)); sleep 0.02; done"})
	w.reader = w.pod.Start([]string{"sh", "-c", "while read line; do echo got $line; done"}, func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	w.sleeper = w.shared.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	w.ended = w.pod.Start([]string{"sh", "-c", "exit 4"})
	w.ended.Exited()
	created, err := w.pod.Create(n.ContainerConfig([]string{"sleep", "1000"}))
	if err != nil {
		t.Fatal(err)
	}
	w.created = created
	for _, c := range w.running() {
		w.processes[c.ID] = w.process(c)
	}
	return w
}

func (w *workload) running() []*harness.Container {
	return []*harness.Container{w.counter, w.reader, w.sleeper}
}

// process is the first process of a container, as reported by the daemon.
func (w *workload) process(c *harness.Container) proc.Stat {
	w.t.Helper()
	answer, err := w.n.Runtime.ContainerStatus(w.n.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil {
		w.t.Fatalf("status of container: %v", err)
	}
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(answer.GetInfo()["info"]), &info); err != nil {
		w.t.Fatalf("read info %q: %v", answer.GetInfo(), err)
	}
	stat, err := proc.Read(info.PID)
	if err != nil {
		w.t.Fatalf("read process of container: %v", err)
	}
	return stat
}

// check does with the workload what kubelet and users do, and looks for processes that are not the same any more.
func (w *workload) check(when string) {
	w.t.Helper()
	w.checks++
	w.lists(when)
	for _, c := range w.running() {
		if got, want := w.process(c), w.processes[c.ID]; got.PID != want.PID || got.Started != want.Started {
			w.t.Errorf("%s process %d of %s began at %d, want %d at %d", when, got.PID, c.Config.GetMetadata().GetName(), got.Started, want.PID, want.Started)
		}
		if got := c.Output("echo", when); got != when {
			w.t.Errorf("%s a command in the container says %q", when, got)
		}
	}
	if code := w.ended.Status().GetExitCode(); code != 4 {
		w.t.Errorf("%s exit code of the container that ended is %d, want 4", when, code)
	}
	w.logGoesOn(when)
	w.attach(when)
	w.stats(when)
	w.startsPods(when)
}

// lists compares the lists with what was made.
func (w *workload) lists(when string) {
	w.t.Helper()
	pods, err := w.n.Runtime.ListPodSandbox(w.n.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range pods.GetItems() {
		if p.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
			w.t.Errorf("%s pod %s is %v", when, p.GetMetadata().GetName(), p.GetState())
		}
	}
	containers, err := w.n.Runtime.ListContainers(w.n.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(pods.GetItems()) != 2 || len(containers.GetContainers()) != 5 {
		w.t.Errorf("%s lists have %d pods and %d containers, want 2 and 5", when, len(pods.GetItems()), len(containers.GetContainers()))
	}
	states := map[string]runtimeapi.ContainerState{
		w.ended.ID: runtimeapi.ContainerState_CONTAINER_EXITED, w.created.ID: runtimeapi.ContainerState_CONTAINER_CREATED,
	}
	for _, c := range w.running() {
		states[c.ID] = runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	for _, c := range containers.GetContainers() {
		if want := states[c.GetId()]; c.GetState() != want {
			w.t.Errorf("%s container %s is %v, want %v", when, c.GetMetadata().GetName(), c.GetState(), want)
		}
	}
}

// logGoesOn waits for lines of the counter that are new, and looks for one that is missing, doubled or torn.
func (w *workload) logGoesOn(when string) {
	w.t.Helper()
	before := len(w.counter.LogLines())
	w.n.Eventually(when+" the log goes on", func() error {
		if now := len(w.counter.LogLines()); now <= before {
			return fmt.Errorf("it has %d lines", now)
		}
		return nil
	})
	w.wantWholeLog(when)
}

func (w *workload) wantWholeLog(when string) {
	w.t.Helper()
	for i, line := range w.counter.LogLines() {
		if want := fmt.Sprintf("stdout F line %d", i); line != want {
			w.t.Errorf("%s line %d of the log is %q, want %q", when, i, line, want)
			return
		}
	}
}

// attach sends a line to the reader, whose answer comes back and is in the log.
func (w *workload) attach(when string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), commandDeadline)
	defer cancel()
	word := fmt.Sprintf("word%d", w.checks)
	cmd := exec.CommandContext(ctx, w.n.Program("berth"), "--endpoint", w.n.Config.Listen, "attach", w.reader.ID)
	cmd.Stdin = strings.NewReader(word + "\n")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "got "+word+"\n" {
		w.t.Errorf("%s attach shows %q (%v), want the answer to %s", when, line, err, word)
	}
	cancel() // the session goes on as long as the container
	_ = cmd.Wait()
	w.n.Eventually(when+" the answer is in the log", func() error {
		if lines := w.reader.LogLines(); len(lines) != w.checks || lines[w.checks-1] != "stdout F got "+word {
			return fmt.Errorf("it is %q", lines)
		}
		return nil
	})
}

func (w *workload) stats(when string) {
	w.t.Helper()
	for _, c := range w.running() {
		answer, err := w.n.Runtime.ContainerStats(w.n.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.ID})
		if err != nil {
			w.t.Errorf("%s stats: %v", when, err)
			continue
		}
		s := answer.GetStats()
		if s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
			w.t.Errorf("%s stats of %s are %v", when, c.Config.GetMetadata().GetName(), s)
		}
	}
}

// startsPods goes through the life of a new pod.
func (w *workload) startsPods(when string) {
	w.t.Helper()
	p := w.n.RunPod()
	c := p.Start([]string{"sh", "-c", "trap 'exit 5' TERM; echo ready; while true; do sleep 0.02; done"})
	w.n.Eventually(when+" a new container writes its log", func() error {
		if lines := c.LogLines(); len(lines) != 1 {
			return fmt.Errorf("it is %q", lines)
		}
		return nil
	})
	c.Stop(10)
	if code := c.Exited().GetExitCode(); code != 5 {
		w.t.Errorf("%s exit code of a new container is %d, want 5", when, code)
	}
	c.Remove()
	p.Stop()
	p.Remove()
}

// end starts the container that was created before the change, and stops and removes everything.
func (w *workload) end() {
	w.t.Helper()
	if err := w.created.Start(); err != nil {
		w.t.Errorf("start a container that was created before the change: %v", err)
	}
	w.counter.Stop(10)
	if code := w.counter.Exited().GetExitCode(); code != 9 {
		w.t.Errorf("exit code of the counter is %d, want 9", code)
	}
	w.wantWholeLog("at the end")
	for _, c := range []*harness.Container{w.counter, w.reader, w.sleeper, w.ended, w.created} {
		c.Stop(0)
		c.Remove()
	}
	for _, p := range []*harness.Pod{w.pod, w.shared} {
		p.Stop()
		p.Remove()
	}
}
