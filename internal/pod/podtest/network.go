// Package podtest holds what the pod engine relies on in its parts, as suites. The real managers pass them, and so do the
// fakes that tests of the engine use.
package podtest

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/network"
	"github.com/berth-runtime/berth/internal/pod"
)

// Network is a network manager under test.
type Network struct {
	pod.Network
	// NewPod returns a pod with a network namespace, not attached yet. Each call returns another pod.
	NewPod func(t testing.TB) network.Pod
	// RemoveNamespace removes the network namespace of a pod.
	RemoveNamespace func(t testing.TB, p network.Pod)
}

// RunNetwork tests what the engine relies on in a network manager. open returns one for the length of a test.
func RunNetwork(t *testing.T, open func(t *testing.T) Network) {
	for name, test := range map[string]func(*testing.T, Network){
		"attached-pod-has-address":       attachedPodHasAddress,
		"detach-is-idempotent":           detachIsIdempotent,
		"detach-without-attach":          detachWithoutAttach,
		"detach-without-namespace":       detachWithoutNamespace,
		"attach-after-detach":            attachAfterDetach,
		"attach-needs-namespace":         attachNeedsNamespace,
		"failed-attach-is-detached":      failedAttachIsDetached,
		"collect-leaves-pods-that-exist": collectLeavesPods,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// plan plans for a pod. The plan is all that a later daemon knows of it.
func (n Network) plan(t *testing.T, p network.Pod) network.Plan {
	t.Helper()
	plan, err := n.Plan(p)
	if err != nil {
		t.Fatalf("Plan: %v", err)
	}
	return plan
}

func (n Network) attach(t *testing.T, p network.Pod, plan network.Plan) network.Result {
	t.Helper()
	result, err := n.Attach(t.Context(), p, plan)
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	return result
}

func (n Network) detach(t *testing.T, p network.Pod, plan network.Plan) {
	t.Helper()
	if err := n.Detach(context.WithoutCancel(t.Context()), p, plan); err != nil {
		t.Errorf("Detach: %v", err)
	}
}

// A manager that is ready gives a pod at least one address.
func attachedPodHasAddress(t *testing.T, n Network) {
	if err := n.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
	p := n.NewPod(t)
	plan := n.plan(t, p)
	if result := n.attach(t, p, plan); len(result.IPs) == 0 || !result.IPs[0].IsValid() {
		t.Errorf("addresses are %v, want at least one", result.IPs)
	}
	n.detach(t, p, plan)
}

// To detach again is no error.
func detachIsIdempotent(t *testing.T, n Network) {
	p := n.NewPod(t)
	plan := n.plan(t, p)
	n.attach(t, p, plan)
	n.detach(t, p, plan)
	n.detach(t, p, plan)
}

// A daemon that was killed after Plan does not know whether it attached the pod.
func detachWithoutAttach(t *testing.T, n Network) {
	p := n.NewPod(t)
	n.detach(t, p, n.plan(t, p))
}

// After a reboot the namespace is gone, and what is outside of it must be released.
func detachWithoutNamespace(t *testing.T, n Network) {
	p := n.NewPod(t)
	plan := n.plan(t, p)
	n.attach(t, p, plan)
	n.RemoveNamespace(t, p)
	n.detach(t, p, plan)
	n.detach(t, p, plan)
}

// A pod can be attached again after it was detached: a request that failed in a later step is retried.
func attachAfterDetach(t *testing.T, n Network) {
	p := n.NewPod(t)
	plan := n.plan(t, p)
	n.attach(t, p, plan)
	n.detach(t, p, plan)
	if result := n.attach(t, p, plan); len(result.IPs) == 0 {
		t.Error("the pod has no address when it is attached again")
	}
	n.detach(t, p, plan)
}

// A namespace that does not exist is an ErrNotFound, and leaves nothing that Detach could not undo.
func attachNeedsNamespace(t *testing.T, n Network) {
	p := n.NewPod(t)
	plan := n.plan(t, p)
	n.RemoveNamespace(t, p)
	if _, err := n.Attach(t.Context(), p, plan); !errdefs.IsNotFound(err) {
		t.Errorf("Attach without the namespace: %v, want ErrNotFound", err)
	}
	n.detach(t, p, plan)
}

// An Attach that its context ends can be undone, and tried again.
func failedAttachIsDetached(t *testing.T, n Network) {
	p := n.NewPod(t)
	plan := n.plan(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Attach(ctx, p, plan); err == nil {
		t.Error("Attach with a context that has ended succeeds")
	}
	n.detach(t, p, plan)
	n.attach(t, p, plan)
	n.detach(t, p, plan)
}

// Collect releases what belongs to no pod, as often as it is called, and does not touch pods that exist.
func collectLeavesPods(t *testing.T, n Network) {
	live, gone := n.NewPod(t), n.NewPod(t)
	livePlan, gonePlan := n.plan(t, live), n.plan(t, gone)
	n.attach(t, live, livePlan)
	n.attach(t, gone, gonePlan)
	n.RemoveNamespace(t, gone)
	for range 2 {
		if err := n.Collect(t.Context(), map[string]bool{live.ID: true}); err != nil {
			t.Errorf("Collect: %v", err)
		}
	}
	n.detach(t, gone, gonePlan)
	n.detach(t, live, livePlan)
}
