package network

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/berth-runtime/berth/internal/namespace"
)

// Host is a rig for tests outside of this package.
type Host struct {
	*Manager
	rig  *rig
	pods int
}

// NewHost opens a manager with the built-in network, or with the bridge plugin, for the length of a test.
func NewHost(t *testing.T, plugin bool) *Host {
	t.Helper()
	var r *rig
	if plugin {
		r = withList(t, seedList, nil)
	} else {
		r = newRig(t, nil)
	}
	return &Host{Manager: r.Manager, rig: r}
}

// NewPod makes a pod with a network namespace.
func (h *Host) NewPod(testing.TB) Pod {
	h.pods++
	return h.rig.pod(fmt.Sprintf("pod%d", h.pods))
}

// RemoveNamespace removes the namespace of a pod.
func (h *Host) RemoveNamespace(t testing.TB, p Pod) {
	t.Helper()
	must(t, namespace.Remove(context.Background(), filepath.Dir(p.NetNS)))
}
