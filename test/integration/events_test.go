package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// subscribe begins to listen to events. The subscription is in force when it returns: the daemon says so by the header.
func subscribe(t *testing.T, n *harness.Node) runtimeapi.RuntimeService_GetContainerEventsClient {
	t.Helper()
	stream, err := n.Runtime.GetContainerEvents(n.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	return stream
}

// eventName is an event as the tests write it down.
func eventName(names map[string]string, event *runtimeapi.ContainerEventResponse) string {
	kind := strings.TrimSuffix(strings.TrimPrefix(event.GetContainerEventType().String(), "CONTAINER_"), "_EVENT")
	return names[event.GetContainerId()] + " " + kind
}

// TestEvents: each change of a pod and its container is published once, in order, with the pod's status and those of its
// containers as they were then.
func TestEvents(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		stream := subscribe(t, n)
		p := n.RunPod()
		c := p.Start([]string{"sh", "-c", "exit 7"})
		c.Exited()
		c.Remove()
		running := p.Start([]string{"sleep", "1000"})
		running.Remove()
		p.Stop()
		p.Remove()
		names := map[string]string{p.ID: "pod", c.ID: "first", running.ID: "second"}
		for _, want := range []string{
			"pod CREATED", "pod STARTED", "first CREATED", "first STARTED", "first STOPPED", "first DELETED",
			"second CREATED", "second STARTED", "second STOPPED", "second DELETED", "pod STOPPED", "pod DELETED",
		} {
			event, err := stream.Recv()
			if err != nil {
				t.Fatalf("wait for %q: %v", want, err)
			}
			equal(t, "event", eventName(names, event), want)
			equal(t, "pod of "+want, event.GetPodSandboxStatus().GetMetadata().GetUid(), p.Config.GetMetadata().GetUid())
			if event.GetCreatedAt() <= 0 {
				t.Errorf("%s was at %d", want, event.GetCreatedAt())
			}
			statuses := map[string]*runtimeapi.ContainerStatus{}
			for _, st := range event.GetContainersStatuses() {
				statuses[names[st.GetId()]] = st
			}
			switch want {
			case "first STARTED":
				if statuses["first"].GetStartedAt() == 0 {
					t.Errorf("status when it was started is %v", statuses["first"])
				}
			case "first STOPPED":
				equal(t, "state when it was stopped", statuses["first"].GetState(), runtimeapi.ContainerState_CONTAINER_EXITED)
				equal(t, "exit code when it was stopped", statuses["first"].GetExitCode(), 7)
			case "first DELETED", "second DELETED":
				equal(t, "containers left when it was deleted", len(statuses), 0)
			case "pod STOPPED", "pod DELETED":
				equal(t, "state of the pod", event.GetPodSandboxStatus().GetState(), runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
			}
		}
	})
}

// TestEventsWithoutReader: who does not read for a while finds the end of every container all the same.
func TestEventsWithoutReader(t *testing.T) {
	n := harness.Start(t, harness.Options{Handler: "crun"})
	stream := subscribe(t, n)
	p := n.RunPod()
	ends := map[string]string{}
	for range 12 {
		c := p.Start([]string{"true"})
		c.Exited()
		c.Remove()
		ends[c.ID] = ""
	}
	p.Remove()
	for {
		event, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if _, ours := ends[event.GetContainerId()]; ours && event.GetContainerEventType() >= runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
			ends[event.GetContainerId()] += eventName(nil, event)
		}
		if event.GetContainerId() == p.ID && event.GetContainerEventType() == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
			break
		}
	}
	for id, end := range ends {
		equal(t, "ends of "+id, end, " STOPPED DELETED")
	}
}

// TestCommandLineEvents: `berth events` follows what happens, `berth update` changes a limit.
func TestCommandLineEvents(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	ctx, cancel := context.WithCancel(n.Context())
	defer cancel()
	var seen buffer
	cmd := exec.CommandContext(ctx, n.Program("berth"), "--endpoint", n.Config.Listen, "events", "-o", "json")
	cmd.Stdout = io.Writer(&seen)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // it ends by the signal
	}()
	n.Eventually("berth listens", func() error {
		n.RunPod().Remove()
		if seen.String() == "" {
			return fmt.Errorf("it says nothing")
		}
		return nil
	})
	c := n.RunPod().Start([]string{"sleep", "1000"})
	if _, err := n.Berth(n.Context(), "update", "--cpus", "0.25", "--unified", "pids.max=50", c.Config.GetMetadata().GetName()); err != nil {
		t.Fatal(err)
	}
	wantQuota(t, "after berth update", c, "25000")
	equal(t, "pids.max after berth update", cgroupFile(t, c, "pids.max", "pids.max"), "50")
	_, err := n.Berth(n.Context(), "update", "--cpuset-cpus", "99999", c.ID)
	if err := mentions(err, "cpuset_cpus", "99999"); err != nil {
		t.Error(err)
	}
	c.Stop(0)
	n.Eventually("berth events shows the end of the container", func() error {
		for line := range bytes.Lines([]byte(seen.String())) {
			var event struct {
				Type, ID string
				ExitCode *int
			}
			if err := json.Unmarshal(line, &event); err != nil {
				return fmt.Errorf("line %q: %w", line, err)
			}
			if event.ID == c.ID && event.Type == "stopped" && event.ExitCode != nil && *event.ExitCode == 137 {
				return nil
			}
		}
		return fmt.Errorf("there are\n%s", seen.String())
	})
}
