package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// maxLeaving bounds how many devices are deleted at once; each deletion holds a thread.
const maxLeaving = 8

// leaveBuiltin disconnects a pod from the built-in network. Its host ports are free when it returns, its device is deleted
// in the background, as that is mostly waiting; the address stays with the lease until the device is gone. If the process
// ends before, the lease tells its successor.
func (m *Manager) leaveBuiltin(id string) error {
	m.mu.Lock()
	leaving := m.leaving[id] != nil
	m.mu.Unlock()
	if leaving {
		return nil
	}
	if err := m.closePorts(id); err != nil {
		return err
	}
	link, err := m.bridge.device(id)
	if err != nil {
		return err
	}
	if link == nil {
		return m.gone(id)
	}
	done := make(chan struct{})
	m.mu.Lock()
	m.leaving[id] = done
	m.mu.Unlock()
	finish := func() error {
		m.unplugging <- struct{}{}
		err := unplug(link)
		<-m.unplugging
		if err == nil {
			err = m.gone(id)
		}
		m.mu.Lock()
		delete(m.leaving, id)
		delete(m.attached, id) // even after an error: what is left is then Collect's
		m.mu.Unlock()
		close(done)
		return err
	}
	if !m.run(func(context.Context) {
		if err := finish(); err != nil {
			m.log.Warn("disconnect pod from the built-in network", "pod", id, "error", err)
		}
	}) {
		return finish()
	}
	return nil
}

// closePorts closes the host ports of a pod and lets others have them.
func (m *Manager) closePorts(id string) error {
	held := m.leases.get(id)
	if held == nil || len(held.Ports) == 0 {
		return nil
	}
	if err := errors.Join(m.firewall.withdraw(held), forgetFlows(held)); err != nil {
		return err
	}
	return m.leases.vacate(id)
}

// giveBack closes the host ports of a pod whose devices are gone and ends its lease.
func (m *Manager) giveBack(id string) error {
	if err := m.closePorts(id); err != nil {
		return err
	}
	return m.gone(id)
}

// gone ends the lease of a pod whose devices and ports are gone.
func (m *Manager) gone(id string) error {
	if held := m.leases.get(id); held != nil && held.Network == Builtin {
		if err := errors.Join(m.guard.dismiss(held), removeShaper(held)); err != nil {
			return err
		}
	}
	if err := m.leases.release(id); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.attached, id)
	return nil
}

// left waits until a pod has left, or every pod that is leaving if id is empty. It reports whether there was any.
func (m *Manager) left(ctx context.Context, id string) (bool, error) {
	m.mu.Lock()
	var waits []chan struct{}
	for leaving, done := range m.leaving {
		if id == "" || leaving == id {
			waits = append(waits, done)
		}
	}
	m.mu.Unlock()
	for _, done := range waits {
		select {
		case <-done:
		case <-ctx.Done():
			return true, fmt.Errorf("wait until earlier devices are deleted: %w", context.Cause(ctx))
		}
	}
	return len(waits) > 0, nil
}

// joinBuiltin connects a pod to the built-in network. If there is no address, those of leaving pods are waited for.
func (m *Manager) joinBuiltin(ctx context.Context, pod Pod, ports []port) (Result, error) {
	if _, err := m.left(ctx, pod.ID); err != nil {
		return Result{}, err
	}
	device, nets, err := m.prepareBuiltin()
	if err != nil {
		return Result{}, err
	}
	result, err := m.bridge.attach(pod, ports, device, nets)
	if errdefs.IsResourceExhausted(err) {
		waited, stop := m.left(ctx, "")
		if stop != nil || !waited {
			return Result{}, errors.Join(err, stop)
		}
		result, err = m.bridge.attach(pod, ports, device, nets)
	}
	if err != nil {
		return Result{}, err
	}
	return result, m.flushFlows(pod.ID)
}
