package nri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// synchronize tells plugins that connect of everything that others know, and
// changes the limits that they want to be different. The library holds its
// lock for writing meanwhile: nothing is created or ends.
func (m *Manager) synchronize(ctx context.Context, send adaptation.SyncCB) error {
	if m.started.CompareAndSwap(false, true) && m.alone() {
		return nil
	}
	pods, containers := m.rt.Known()
	podMessages := make([]*api.PodSandbox, len(pods))
	for i, p := range pods {
		podMessages[i] = p.message()
	}
	containerMessages := make([]*api.Container, len(containers))
	for i, c := range containers {
		containerMessages[i] = c.message()
	}
	updates, err := send(ctx, podMessages, containerMessages)
	if err != nil {
		return err
	}
	if len(updates) > 0 {
		// Not here: a container that is starting waits for the lock. A change that
		// cannot be made is no reason to do without the plugin.
		m.rt.Background(func(ctx context.Context) {
			if err := m.updateOthers(ctx, updates); err != nil {
				m.opts.Log.Warn("change limits as a plugin wants that has connected", "error", err)
			}
		})
	}
	return nil
}

// alone reports whether Start has no plugin to start.
func (m *Manager) alone() bool {
	entries, err := os.ReadDir(m.opts.PluginDir)
	return err == nil && len(entries) == 0 || errors.Is(err, fs.ErrNotExist)
}

// requested changes limits that a plugin wants to be different by itself. It
// returns what could not be changed.
func (m *Manager) requested(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	failed, err := m.update(ctx, updates)
	if err != nil {
		m.opts.Log.Warn("change limits as a plugin wants", "error", err)
	}
	return failed, nil
}

// updateOthers changes the limits that plugins want to be different because of
// an event. A change that has to succeed fails the event with it.
func (m *Manager) updateOthers(ctx context.Context, updates []*api.ContainerUpdate) error {
	_, err := m.update(ctx, updates)
	return err
}

// update changes limits one container after the other. It returns the changes
// that failed though they should not, and the first error among them.
func (m *Manager) update(ctx context.Context, updates []*api.ContainerUpdate) (failed []*api.ContainerUpdate, first error) {
	ctx, cancel := context.WithTimeout(ctx, updateDeadline)
	defer cancel()
	for _, u := range updates {
		err := m.rt.LimitContainer(ctx, u.GetContainerId(), u.GetLinux().GetResources())
		if err == nil {
			continue
		}
		if u.GetIgnoreFailure() {
			m.opts.Log.Debug("a plugin does not mind", "container_id", u.GetContainerId(), "error", err)
			continue
		}
		failed = append(failed, u)
		if first == nil {
			first = fmt.Errorf("update a container as plugins want: %w", err)
		}
	}
	return failed, first
}

// The methods whose messages may name containers to evict.
const (
	methodCreate  = "CreateContainer"
	methodUpdate  = "UpdateContainer"
	methodUpdates = "/nri.pkg.api.v1alpha1.Runtime/UpdateContainers"
)

// evictions are the options by which evictions are seen: the protocol has them
// in three messages, the library hands none of them on.
func (m *Manager) evictions() ([]ttrpc.ClientOpts, []ttrpc.ServerOpt) {
	return []ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(m.evictAnswered)},
		[]ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(m.evictRequested)}
}

// evictAnswered looks for evictions in the answer of a plugin to an event.
func (m *Manager) evictAnswered(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	err := invoke(ctx, req, resp)
	if err != nil || len(resp.GetPayload()) == 0 {
		return err
	}
	var answer interface {
		proto.Message
		GetEvict() []*api.ContainerEviction
	}
	switch req.GetMethod() {
	case methodCreate:
		answer = &api.CreateContainerResponse{}
	case methodUpdate:
		answer = &api.UpdateContainerResponse{}
	default:
		return nil
	}
	if err := proto.Unmarshal(resp.GetPayload(), answer); err != nil {
		return fmt.Errorf("read the answer of a plugin: %w", err)
	}
	m.evict(answer.GetEvict())
	return nil
}

// evictRequested looks for evictions that a plugin asks for by itself.
func (m *Manager) evictRequested(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	if info.FullMethod != methodUpdates {
		return method(ctx, unmarshal)
	}
	var request *api.UpdateContainersRequest
	answer, err := method(ctx, func(to any) error {
		err := unmarshal(to)
		request, _ = to.(*api.UpdateContainersRequest)
		return err
	})
	if err == nil {
		m.evict(request.GetEvict())
	}
	return answer, err
}

// evict has containers stopped. Events show the outcome.
func (m *Manager) evict(evictions []*api.ContainerEviction) {
	for _, e := range evictions {
		if err := m.rt.EvictContainer(e.GetContainerId(), e.GetReason()); err != nil {
			m.opts.Log.Warn("evict a container as a plugin wants", "container_id", e.GetContainerId(), "error", err)
		}
	}
}
