package pod_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-runtime/berth/internal/network"
	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/pod/podtest"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// The fakes of the engine's tests pass the suites that the real managers pass.

func TestFakeNetworkContract(t *testing.T) {
	podtest.RunNetwork(t, func(t *testing.T) podtest.Network {
		pods, dir := 0, t.TempDir()
		return podtest.Network{
			Network: pod.NewFakeNetwork(),
			NewPod: func(t testing.TB) network.Pod {
				pods++
				p := network.Pod{ID: fmt.Sprintf("pod%d", pods), NetNS: filepath.Join(dir, fmt.Sprintf("net%d", pods))}
				if err := os.WriteFile(p.NetNS, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				return p
			},
			RemoveNamespace: func(t testing.TB, p network.Pod) {
				if err := os.Remove(p.NetNS); err != nil {
					t.Error(err)
				}
			},
		}
	})
}

func TestFakeImagesContract(t *testing.T) {
	privilege.Root(t)
	podtest.RunImages(t, func(t *testing.T) podtest.Images {
		leakcheck.Check(t)
		return podtest.Images{Images: pod.NewFakeImages(), Ref: "busybox", Dir: leakcheck.Dir(t)}
	})
}

func TestFakeSupervisorContract(t *testing.T) {
	privilege.Root(t)
	podtest.RunSupervisor(t, func(t *testing.T) podtest.Supervisor {
		f := pod.NewFakeSupervisor(t)
		parent := "/berth-test-" + filepath.Base(leakcheck.Dir(t))
		return podtest.Supervisor{
			Supervisor: f,
			Request: func(t testing.TB, id string) shim.StartRequest {
				path := parent + "-" + id
				t.Cleanup(func() {
					if err := f.RemoveCgroup(path); err != nil {
						t.Error(err)
					}
				})
				return shim.StartRequest{ID: id, CgroupPath: path}
			},
			Exit: func(_ testing.TB, id string) shim.Exit { return f.Exit(id) },
			Reconnect: func(testing.TB) pod.Supervisor {
				f.Reconnect()
				return f
			},
		}
	})
}
