// Witness is a plugin that records its events: one line for each, into the file that it is configured with.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type witness struct{ file *os.File }

func main() {
	p, err := stub.New(&witness{})
	if err == nil {
		err = p.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (w *witness) note(event, id string) error {
	_, err := fmt.Fprintln(w.file, event, id)
	return err
}

func (w *witness) Configure(_ context.Context, file, _, _ string) (_ stub.EventMask, err error) {
	w.file, err = os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return 0, err
}

func (w *witness) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, p := range pods {
		if err := w.note("Known", p.GetId()); err != nil {
			return nil, err
		}
	}
	for _, c := range containers {
		if err := w.note("Known", c.GetId()); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (w *witness) RunPodSandbox(_ context.Context, p *api.PodSandbox) error {
	return w.note("Run", p.GetId())
}

func (w *witness) StopPodSandbox(_ context.Context, p *api.PodSandbox) error {
	return w.note("Stop", p.GetId())
}

func (w *witness) RemovePodSandbox(_ context.Context, p *api.PodSandbox) error {
	return w.note("Remove", p.GetId())
}

func (w *witness) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	return nil, nil, w.note("Create", c.GetId())
}

func (w *witness) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return w.note("Start", c.GetId())
}

func (w *witness) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, w.note("Stop", c.GetId())
}

func (w *witness) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return w.note("Remove", c.GetId())
}
