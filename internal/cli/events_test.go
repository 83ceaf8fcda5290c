package cli

import (
	"encoding/json"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// worldEvents are what happens to the canned world; then the runtime goes away.
func worldEvents() *canned {
	c := newCanned()
	pod := func(id, namespace, name string) *runtimeapi.PodSandboxStatus {
		return &runtimeapi.PodSandboxStatus{Id: id, Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: "uid-" + name}}
	}
	exited := &runtimeapi.ContainerStatus{
		Id: idNginx, Metadata: &runtimeapi.ContainerMetadata{Name: "nginx"}, State: runtimeapi.ContainerState_CONTAINER_EXITED,
		ExitCode: 137, Reason: "OOMKilled",
	}
	c.happens = []*runtimeapi.ContainerEventResponse{
		{ContainerId: idWeb, ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, CreatedAt: ago(0), PodSandboxStatus: pod(idWeb, "shop", "web")},
		{
			ContainerId: idNginx, ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, CreatedAt: ago(0),
			PodSandboxStatus: pod(idWeb, "shop", "web"), ContainersStatuses: []*runtimeapi.ContainerStatus{exited},
		},
		{ContainerId: idPG, ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, CreatedAt: ago(0), PodSandboxStatus: pod(idDB, "shop", "db")},
	}
	return c
}

// Events are shown as they come, and their end is reported.
func TestEvents(t *testing.T) {
	got := worldEvents().berth(t, "events")
	got.complains(t, exitError, "event stream closed")
	lines := strings.Split(strings.TrimSpace(got.out), "\n")
	want := []string{
		"TIME EVENT OBJECT ID NAME STATE",
		"2026-05-01T12:00:00Z started pod a1a1a1a1a1a1 shop/web ready",
		"2026-05-01T12:00:00Z stopped container c1c1c1c1c1c1 shop/web/nginx exited (137) OOMKilled",
		"2026-05-01T12:00:00Z deleted container e5e5e5e5e5e5 shop/db -",
	}
	if len(lines) != len(want) {
		t.Fatalf("output is\n%s\nwant %d lines", got.out, len(want))
	}
	for i, line := range lines {
		if words := strings.Join(strings.Fields(line), " "); words != want[i] {
			t.Errorf("line %d is\n%s\nwant\n%s", i, words, want[i])
		}
	}
}

// JSON is an object per line, and only what was asked for.
func TestEventsOfOnePod(t *testing.T) {
	got := worldEvents().berth(t, "events", "-o", "json", "-p", "shop/web")
	var items []eventItem
	for line := range strings.Lines(got.out) {
		var item eventItem
		if err := json.Unmarshal([]byte(line), &item); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		items = append(items, item)
	}
	if len(items) != 2 || items[1].ExitCode == nil || *items[1].ExitCode != 137 || items[1].Pod.UID != "uid-web" || items[1].Type != "stopped" {
		t.Errorf("events are %+v", items)
	}
	if got := worldEvents().berth(t, "events", "-o", "yaml", "-n", "nowhere"); got.out != "" {
		t.Errorf("events of a namespace that is not there: %s", got.out)
	}
	if got := worldEvents().berth(t, "events", "-o", "yaml", "-p", "db"); !strings.HasPrefix(got.out, "---\n") || !strings.Contains(got.out, "type: deleted") {
		t.Errorf("events as YAML are\n%s", got.out)
	}
}

// A runtime without events is named as such.
func TestNoEvents(t *testing.T) {
	c := newCanned()
	c.events = nil
	c.berth(t, "events").complains(t, exitError, "this runtime sends no events", "berth ps -a")
}
