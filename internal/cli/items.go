package cli

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// statusCalls is how many status calls of one command are in flight.
const statusCalls = 8

// podItem is a pod as JSON and YAML show it. The names are stable.
type podItem struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	UID         string            `json:"uid"`
	Attempt     uint32            `json:"attempt"`
	State       string            `json:"state"`
	CreatedAt   *time.Time        `json:"createdAt"`
	IPs         []string          `json:"ips"`
	Handler     string            `json:"runtimeHandler"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// containerItem is a container as JSON and YAML show it. The names are stable.
type containerItem struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Attempt     uint32            `json:"attempt"`
	Pod         podReference      `json:"pod"`
	State       string            `json:"state"`
	ExitCode    *int32            `json:"exitCode"`
	Reason      string            `json:"reason"`
	Message     string            `json:"message"`
	Image       string            `json:"image"`
	ImageID     string            `json:"imageId"`
	CreatedAt   *time.Time        `json:"createdAt"`
	StartedAt   *time.Time        `json:"startedAt"`
	FinishedAt  *time.Time        `json:"finishedAt"`
	LogPath     string            `json:"logPath"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// podReference names the pod of a container.
type podReference struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
}

// The states of pods and containers as shown.
const (
	stateReady    = "ready"
	stateNotReady = "notready"
	stateCreated  = "created"
	stateRunning  = "running"
	stateExited   = "exited"
	stateUnknown  = "unknown"
)

func podState(s runtimeapi.PodSandboxState) string {
	if s == runtimeapi.PodSandboxState_SANDBOX_READY {
		return stateReady
	}
	return stateNotReady
}

func containerState(s runtimeapi.ContainerState) string {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return stateCreated
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return stateRunning
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return stateExited
	case runtimeapi.ContainerState_CONTAINER_UNKNOWN:
	}
	return stateUnknown
}

// pods lists the pods, newest first.
func (n *node) pods(ctx context.Context) ([]*runtimeapi.PodSandbox, error) {
	ctx, cancel := n.ask(ctx)
	defer cancel()
	resp, err := n.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(resp.Items, func(a, b *runtimeapi.PodSandbox) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
	return resp.Items, nil
}

// containers lists the containers, newest first.
func (n *node) containers(ctx context.Context) ([]*runtimeapi.Container, error) {
	ctx, cancel := n.ask(ctx)
	defer cancel()
	resp, err := n.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(resp.Containers, func(a, b *runtimeapi.Container) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
	return resp.Containers, nil
}

// podItems adds the addresses, which only the status of a pod has.
func (n *node) podItems(ctx context.Context, pods []*runtimeapi.PodSandbox) ([]podItem, error) {
	items := make([]podItem, len(pods))
	ctx, cancel := n.ask(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(statusCalls)
	for i, p := range pods {
		items[i] = newPodItem(p)
		group.Go(func() error {
			resp, err := n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
			if status.Code(err) == codes.NotFound {
				return nil // removed since it was listed
			}
			if err != nil {
				return err
			}
			items[i].IPs = podIPs(resp.Status.GetNetwork())
			return nil
		})
	}
	return items, group.Wait()
}

func newPodItem(p *runtimeapi.PodSandbox) podItem {
	return podItem{
		ID: p.Id, Name: p.Metadata.GetName(), Namespace: p.Metadata.GetNamespace(), UID: p.Metadata.GetUid(),
		Attempt: p.Metadata.GetAttempt(), State: podState(p.State), CreatedAt: moment(p.CreatedAt),
		IPs: []string{}, Handler: p.RuntimeHandler, Labels: orEmpty(p.Labels), Annotations: orEmpty(p.Annotations),
	}
}

func podIPs(network *runtimeapi.PodSandboxNetworkStatus) []string {
	out := []string{}
	if ip := network.GetIp(); ip != "" {
		out = append(out, ip)
	}
	for _, more := range network.GetAdditionalIps() {
		out = append(out, more.Ip)
	}
	return out
}

// containerItems adds what only the status of a container has.
func (n *node) containerItems(ctx context.Context, containers []*runtimeapi.Container, pods []*runtimeapi.PodSandbox) ([]containerItem, error) {
	byID := make(map[string]*runtimeapi.PodSandbox, len(pods))
	for _, p := range pods {
		byID[p.Id] = p
	}
	items := make([]containerItem, len(containers))
	ctx, cancel := n.ask(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(statusCalls)
	for i, c := range containers {
		items[i] = newContainerItem(c, byID[c.PodSandboxId])
		group.Go(func() error {
			resp, err := n.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
			if status.Code(err) == codes.NotFound {
				return nil // removed since it was listed
			}
			if err != nil {
				return err
			}
			items[i].fill(resp.Status)
			return nil
		})
	}
	return items, group.Wait()
}

func newContainerItem(c *runtimeapi.Container, pod *runtimeapi.PodSandbox) containerItem {
	return containerItem{
		ID: c.Id, Name: c.Metadata.GetName(), Attempt: c.Metadata.GetAttempt(),
		Pod: podReference{
			ID: c.PodSandboxId, Name: pod.GetMetadata().GetName(),
			Namespace: pod.GetMetadata().GetNamespace(), UID: pod.GetMetadata().GetUid(),
		},
		State: containerState(c.State), Image: imageName(c.Image, c.ImageId), ImageID: c.ImageId,
		CreatedAt: moment(c.CreatedAt), Labels: orEmpty(c.Labels), Annotations: orEmpty(c.Annotations),
	}
}

func (c *containerItem) fill(st *runtimeapi.ContainerStatus) {
	c.State = containerState(st.GetState())
	c.Reason, c.Message, c.LogPath = st.GetReason(), st.GetMessage(), st.GetLogPath()
	c.StartedAt, c.FinishedAt = moment(st.GetStartedAt()), moment(st.GetFinishedAt())
	if c.State == stateExited {
		c.ExitCode = &st.ExitCode
	}
}

// stateText is the state as a table shows it: with the exit code and, if it is
// more than that the command ended, the reason.
func (c *containerItem) stateText() string {
	if c.ExitCode == nil {
		return c.State
	}
	text := c.State + " (" + strconv.Itoa(int(*c.ExitCode)) + ")"
	switch c.Reason {
	case "", "Completed", "Error":
		return text
	}
	return text + " " + c.Reason
}

// imageName is what the user asked for, or what the runtime made of it.
func imageName(spec *runtimeapi.ImageSpec, id string) string {
	for _, name := range []string{spec.GetUserSpecifiedImage(), spec.GetImage(), id} {
		if name != "" {
			return name
		}
	}
	return ""
}

// shortImage cuts bare digests but leaves names alone.
func shortImage(image string) string {
	if strings.HasPrefix(image, "sha256:") {
		return short(image)
	}
	return image
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
