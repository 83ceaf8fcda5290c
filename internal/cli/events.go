package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

// eventItem is an event as JSON and YAML show it. The names are stable.
type eventItem struct {
	Time time.Time `json:"time"`
	Type string    `json:"type"`
	// Object is "container" or "pod".
	Object   string       `json:"object"`
	ID       string       `json:"id"`
	Name     string       `json:"name"`
	Pod      podReference `json:"pod"`
	State    string       `json:"state"`
	ExitCode *int32       `json:"exitCode"`
	Reason   string       `json:"reason"`
}

// eventFlags restrict what is shown.
type eventFlags struct {
	namespace, pod string
	noTrunc        bool
}

func (a *app) eventsCommand() *cobra.Command {
	var f eventFlags
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show events of pods and containers",
		Long: `Show events of pods and containers from now on, until interrupted.

Past events are not stored: for the current state see "berth ps -a" and "berth inspect". JSON output is one object per
line, YAML output one document per event.`,
		Args: takes(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, n *node) error { return a.events(ctx, n, f) })
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.namespace, "namespace", "n", "", "only those of pods in this `NAMESPACE`")
	flags.StringVarP(&f.pod, "pod", "p", "", "only those of the `POD` with this name, or with an ID that begins so")
	flags.BoolVar(&f.noTrunc, "no-trunc", false, "show IDs in full")
	return cmd
}

func (a *app) events(ctx context.Context, n *node, f eventFlags) error {
	stream, err := n.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err == nil && a.format == formatTable {
		_, err = fmt.Fprintf(a.Out, eventLine, "TIME", "EVENT", "OBJECT", "ID", "NAME", "STATE")
	}
	for err == nil {
		var event *runtimeapi.ContainerEventResponse
		if event, err = stream.Recv(); err != nil {
			break
		}
		if item := newEventItem(event); f.match(item) {
			err = a.showEvent(item, f)
		}
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case status.Code(err) == codes.Unimplemented:
		return &hintedError{err: errors.New("this runtime sends no events"), next: "List containers and pods with: berth ps -a; berth pods -a"}
	case errors.Is(err, io.EOF), status.Code(err) == codes.Unavailable:
		return errors.New("event stream closed; events until you reconnect are missed")
	}
	return fmt.Errorf("watch events: %w", err)
}

func (f *eventFlags) match(e eventItem) bool {
	return (f.namespace == "" || e.Pod.Namespace == f.namespace) &&
		(f.pod == "" || e.Pod.Name == f.pod || e.Pod.Namespace+"/"+e.Pod.Name == f.pod || strings.HasPrefix(e.Pod.ID, f.pod))
}

// newEventItem finds what the event is about in the statuses that come with it.
// A container that was deleted is in none.
func newEventItem(event *runtimeapi.ContainerEventResponse) eventItem {
	pod := event.GetPodSandboxStatus()
	meta := pod.GetMetadata()
	item := eventItem{
		Time: time.Unix(0, event.GetCreatedAt()).UTC(), ID: event.GetContainerId(), Object: "container",
		Type: strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(event.GetContainerEventType().String(), "CONTAINER_"), "_EVENT")),
		Pod:  podReference{ID: pod.GetId(), Name: meta.GetName(), Namespace: meta.GetNamespace(), UID: meta.GetUid()},
	}
	if item.ID == pod.GetId() {
		item.Object, item.Name, item.State = "pod", meta.GetName(), podState(pod.GetState())
		return item
	}
	for _, st := range event.GetContainersStatuses() {
		if st.GetId() != item.ID {
			continue
		}
		item.Name, item.State, item.Reason = st.GetMetadata().GetName(), containerState(st.GetState()), st.GetReason()
		if item.State == stateExited {
			item.ExitCode = &st.ExitCode
		}
	}
	return item
}

// eventLine is a line of the table, whose columns cannot wait for what comes.
const eventLine = "%-30s  %-8s  %-10s  %-14s  %-40s  %s\n"

func (a *app) showEvent(e eventItem, f eventFlags) error {
	switch a.format {
	case formatTable:
		id, name := e.ID, e.Pod.Namespace+"/"+e.Pod.Name
		if !f.noTrunc {
			id = short(id)
		}
		if e.Object == "container" && e.Name != "" {
			name += "/" + e.Name
		}
		c := containerItem{State: e.State, ExitCode: e.ExitCode, Reason: e.Reason}
		_, err := fmt.Fprintf(a.Out, eventLine, e.Time.Format(time.RFC3339Nano), e.Type, e.Object, id, oneLine(name), orDash(c.stateText()))
		return err
	case formatYAML:
		text, err := yaml.Marshal(e)
		if err != nil {
			return fmt.Errorf("write YAML: %w", err)
		}
		_, err = fmt.Fprintf(a.Out, "---\n%s", text)
		return err
	}
	text, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	_, err = a.Out.Write(append(text, '\n'))
	return err
}
