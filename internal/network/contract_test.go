package network_test

import (
	"testing"

	"github.com/berth-runtime/berth/internal/network"
	"github.com/berth-runtime/berth/internal/pod/podtest"
)

// TestContract: the manager does what the pod engine relies on, with the built-in network and with plugins.
func TestContract(t *testing.T) {
	for name, plugin := range map[string]bool{"builtin": false, "plugin": true} {
		t.Run(name, func(t *testing.T) {
			podtest.RunNetwork(t, func(t *testing.T) podtest.Network {
				h := network.NewHost(t, plugin)
				return podtest.Network{Network: h, NewPod: h.NewPod, RemoveNamespace: h.RemoveNamespace}
			})
		})
	}
}
