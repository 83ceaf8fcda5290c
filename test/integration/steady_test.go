package integration

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestErrorsAreSteady: kubelet puts errors into events and into the status of the pod, and tries again under a new ID
// each time. It writes the name of a container in place of its ID, no other. A text that is the same each time makes one
// event with a count; one that differs makes a new event, and a write to the API server, for each attempt.
func TestErrorsAreSteady(t *testing.T) {
	n := harness.Start(t, harness.Options{Conflist: brokenConflist})
	n.Pull()
	host := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	config := n.PodConfig()
	attempt := uint32(0)
	container := func(command ...string) (*harness.Container, error) {
		attempt++
		c := n.ContainerConfig(command)
		c.Metadata.Name, c.Metadata.Attempt = "steady", attempt
		return host.Create(c)
	}
	runs := host.Start([]string{"sleep", "1000"})
	for _, c := range []struct {
		name string
		try  func() error
	}{
		{"sandbox", func() error {
			config.Metadata.Attempt++
			_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			return err
		}},
		{"create", func() error {
			attempt++
			c := n.ContainerConfig([]string{"sleep", "1000"})
			c.Metadata.Name, c.Metadata.Attempt = "steady", attempt
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{
				ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile.json",
			}
			_, err := host.Create(c)
			return err
		}},
		{"start", func() error {
			c, err := container("/no/such/program")
			if err != nil {
				return err
			}
			return kubeletText{c.Start(), c.ID}
		}},
		{"exec", func() error {
			_, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: runs.ID, Cmd: []string{"/no/such/program"}})
			return err
		}},
		{"exec-timeout", func() error {
			_, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: runs.ID, Cmd: []string{"sleep", "9"}, Timeout: 1})
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			first, second := c.try(), c.try()
			if first == nil || second == nil || first.Error() != second.Error() {
				t.Errorf("the error is\n%v\nand when tried again\n%v\nwant the same", first, second)
			}
		})
	}
}

// kubeletText is an error as it gets into an event.
type kubeletText struct {
	error
	id string
}

func (k kubeletText) Error() string { return strings.ReplaceAll(k.error.Error(), k.id, "ID") }

// brokenConflist names a plugin that is not there.
func brokenConflist(testing.TB) string {
	return `{"cniVersion": "1.0.0", "name": "broken", "plugins": [{"type": "no-such-plugin"}]}`
}
