package nri

import (
	"context"
	"fmt"
	"regexp"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Subject describes what an event is about. It is called only if a plugin
// listens. For an event of a pod the container is not looked at.
type Subject func() (Pod, Container)

// attend holds plugins off that want to connect, until the returned function
// is called, and says whether anybody listens. Between the two nothing may wait
// for another event, nor for limits to be changed, which may wait for one.
func (m *Manager) attend() (listens bool, release func()) {
	if m == nil || m.adapter == nil {
		return false, func() {}
	}
	block := m.adapter.BlockPluginSync()
	return m.plugins.Load() > 0, block.Unblock
}

// RunPod announces a pod whose network is up and that is not listed yet. Any
// plugin may refuse it. From the call of known on, plugins know the pod.
func (m *Manager) RunPod(ctx context.Context, subject Subject, known func()) error {
	listens, release := m.attend()
	defer release()
	known()
	if !listens {
		return nil
	}
	pod, _ := subject()
	return refused(ctx, m.adapter.RunPodSandbox(ctx, &adaptation.RunPodSandboxRequest{Pod: pod.message()}))
}

// UpdatePod tells of new resources of a pod, which any plugin may refuse.
func (m *Manager) UpdatePod(ctx context.Context, subject Subject, overhead, resources *runtimeapi.LinuxContainerResources) error {
	listens, release := m.attend()
	defer release()
	if !listens {
		return nil
	}
	pod, _ := subject()
	_, err := m.adapter.UpdatePodSandbox(ctx, &adaptation.UpdatePodSandboxRequest{
		Pod: pod.message(), OverheadLinuxResources: Limits(overhead), LinuxResources: Limits(resources),
	})
	return refused(ctx, err)
}

// PodUpdated tells of new resources of a pod that are in force.
func (m *Manager) PodUpdated(ctx context.Context, subject Subject) {
	listens, release := m.attend()
	defer release()
	if listens {
		pod, _ := subject()
		m.note("PostUpdatePodSandbox", pod.ID, m.adapter.PostUpdatePodSandbox(ctx, &adaptation.PostUpdatePodSandboxRequest{Pod: pod.message()}))
	}
}

// StopPod tells of a pod of which no process lives; its network still stands.
func (m *Manager) StopPod(ctx context.Context, subject Subject) {
	listens, release := m.attend()
	defer release()
	if listens {
		pod, _ := subject()
		m.note("StopPodSandbox", pod.ID, m.adapter.StopPodSandbox(ctx, &adaptation.StopPodSandboxRequest{Pod: pod.message()}))
	}
}

// RemovePod tells of a pod of which nothing is left. From the call of unknown
// on, plugins that connect do not get it any more.
func (m *Manager) RemovePod(ctx context.Context, subject Subject, unknown func()) {
	listens, release := m.attend()
	defer release()
	defer unknown()
	if listens {
		pod, _ := subject()
		m.note("RemovePodSandbox", pod.ID, m.adapter.RemovePodSandbox(ctx, &adaptation.RemovePodSandboxRequest{Pod: pod.message()}))
	}
}

// CreateContainer tells of a container that is being made and gives what
// plugins want to be different to adjust. Any plugin and any validator may
// refuse the container. From the call of known on, plugins know it.
func (m *Manager) CreateContainer(ctx context.Context, subject Subject, known func(), adjust func(*api.ContainerAdjustment) error) error {
	answer, err := m.askCreate(ctx, subject, known)
	if err != nil {
		return refused(ctx, err)
	}
	if answer.GetAdjust() != nil {
		if err := adjust(answer.GetAdjust()); err != nil {
			return fmt.Errorf("adjust it as plugins want: %w", err)
		}
	}
	return m.updateOthers(ctx, answer.GetUpdate())
}

func (m *Manager) askCreate(ctx context.Context, subject Subject, known func()) (*adaptation.CreateContainerResponse, error) {
	listens, release := m.attend()
	defer release()
	known()
	if !listens {
		return nil, nil
	}
	pod, container := subject()
	request := &adaptation.CreateContainerRequest{Pod: pod.message(), Container: container.message()}
	answer, err := m.adapter.CreateContainer(ctx, request)
	if err == nil && container.Spec != nil {
		markRemoved(answer.GetAdjust(), container.Spec, request.GetContainer())
	}
	return answer, err
}

// ContainerCreated tells of a container that has been made.
func (m *Manager) ContainerCreated(ctx context.Context, subject Subject) {
	m.tell("PostCreateContainer", subject, func(pod *api.PodSandbox, c *api.Container) error {
		return m.adapter.PostCreateContainer(ctx, &adaptation.PostCreateContainerRequest{Pod: pod, Container: c})
	})
}

// StartContainer tells of a container that is about to start. Any plugin may
// refuse.
func (m *Manager) StartContainer(ctx context.Context, subject Subject) error {
	listens, release := m.attend()
	defer release()
	if !listens {
		return nil
	}
	pod, container := subject()
	return refused(ctx, m.adapter.StartContainer(ctx, &adaptation.StartContainerRequest{Pod: pod.message(), Container: container.message()}))
}

// ContainerStarted tells of a container that runs.
func (m *Manager) ContainerStarted(ctx context.Context, subject Subject) {
	m.tell("PostStartContainer", subject, func(pod *api.PodSandbox, c *api.Container) error {
		return m.adapter.PostStartContainer(ctx, &adaptation.PostStartContainerRequest{Pod: pod, Container: c})
	})
}

// UpdateContainer tells of new limits of a container and returns what plugins
// make of them: nil if they are to be as they were asked for.
func (m *Manager) UpdateContainer(ctx context.Context, subject Subject, asked *runtimeapi.LinuxContainerResources) (*api.LinuxResources, error) {
	answer, id, err := m.askUpdate(ctx, subject, asked)
	if err != nil {
		return nil, refused(ctx, err)
	}
	var wanted *api.LinuxResources
	var others []*api.ContainerUpdate
	for _, u := range answer.GetUpdate() {
		switch {
		case u == nil: // no plugin wants anything else
		case u.GetContainerId() == id:
			wanted = u.GetLinux().GetResources()
		default:
			others = append(others, u)
		}
	}
	return wanted, m.updateOthers(ctx, others)
}

func (m *Manager) askUpdate(ctx context.Context, subject Subject, asked *runtimeapi.LinuxContainerResources) (*adaptation.UpdateContainerResponse, string, error) {
	listens, release := m.attend()
	defer release()
	if !listens {
		return nil, "", nil
	}
	pod, container := subject()
	answer, err := m.adapter.UpdateContainer(ctx, &adaptation.UpdateContainerRequest{
		Pod: pod.message(), Container: container.message(), LinuxResources: Limits(asked),
	})
	return answer, container.ID, err
}

// ContainerUpdated tells of new limits of a container that are in force.
func (m *Manager) ContainerUpdated(ctx context.Context, subject Subject) {
	m.tell("PostUpdateContainer", subject, func(pod *api.PodSandbox, c *api.Container) error {
		return m.adapter.PostUpdateContainer(ctx, &adaptation.PostUpdateContainerRequest{Pod: pod, Container: c})
	})
}

// StopContainer tells of a container of which no process lives.
func (m *Manager) StopContainer(ctx context.Context, subject Subject) {
	var updates []*api.ContainerUpdate
	m.tell("StopContainer", subject, func(pod *api.PodSandbox, c *api.Container) error {
		answer, err := m.adapter.StopContainer(ctx, &adaptation.StopContainerRequest{Pod: pod, Container: c})
		updates = answer.GetUpdate()
		return err
	})
	if err := m.updateOthers(ctx, updates); err != nil {
		m.opts.Log.Warn("change limits because a container has ended", "error", err)
	}
}

// RemoveContainer tells of a container that goes. From the call of unknown on,
// plugins that connect do not get it any more.
func (m *Manager) RemoveContainer(ctx context.Context, subject Subject, unknown func()) {
	listens, release := m.attend()
	defer release()
	defer unknown()
	if listens {
		pod, container := subject()
		m.note("RemoveContainer", container.ID, m.adapter.RemoveContainer(ctx,
			&adaptation.RemoveContainerRequest{Pod: pod.message(), Container: container.message()}))
	}
}

// tell sends an event that no plugin can refuse.
func (m *Manager) tell(event string, subject Subject, send func(*api.PodSandbox, *api.Container) error) {
	listens, release := m.attend()
	defer release()
	if listens {
		pod, container := subject()
		m.note(event, container.ID, send(pod.message(), container.message()))
	}
}

// note logs the failure of a plugin that changes nothing about what happened.
func (m *Manager) note(event, id string, err error) {
	if err != nil {
		m.opts.Log.Warn("tell plugins", "event", event, "id", id, "error", err)
	}
}

// rpcWords is what the library's transport puts in front of what a plugin says.
var rpcWords = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// refused says that it was a plugin that did not want something.
func refused(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("ask plugins: %w", ctx.Err())
	}
	return fmt.Errorf("refused through NRI: %s: %w", rpcWords.ReplaceAllString(err.Error(), ""), errdefs.ErrAborted)
}
