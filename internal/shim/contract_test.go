package shim_test

import (
	"testing"

	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/pod/podtest"
	"github.com/berth-runtime/berth/internal/shim"
)

// TestContract: the client and its supervisor do what the pod engine relies on, with each OCI runtime.
func TestContract(t *testing.T) {
	for _, name := range []string{"runc", "crun", "shim-v2"} {
		t.Run(name, func(t *testing.T) {
			podtest.RunSupervisor(t, func(t *testing.T) podtest.Supervisor {
				h := newHost(t)
				return podtest.Supervisor{
					Supervisor: h.client,
					Request: func(_ testing.TB, id string) shim.StartRequest {
						return h.bundle(h.handler(name), id, "sleep 1000")
					},
					Exit: func(_ testing.TB, id string) shim.Exit { return h.exit(id) },
					Reconnect: func(testing.TB) pod.Supervisor {
						h.disconnect()
						h.connect()
						return h.client
					},
				}
			})
		})
	}
}
