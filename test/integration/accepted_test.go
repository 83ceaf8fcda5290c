package integration

import (
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestOddRequestsAreAccepted: forms of a request that containerd and CRI-O accept are accepted, the container has what they
// give it, and what is ignored is a warning.
func TestOddRequestsAreAccepted(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
			change(t, c, `{"dns_config": {"servers": ["", "192.0.2.1"], "options": ["ndots:5 timeout:1"]},
				"port_mappings": [{"host_port": -1, "container_port": 70000}], "linux": {"sysctls": {"kernel.domainname": "example.com"},
				"security_context": {"namespace_options": {"network": "CONTAINER"}}}}`)
		})
		equal(t, "warnings of the pod", fields(podWarnings(t, n, p.ID)), "dns_config.servers port_mappings[0] linux.security_context.namespace_options.network")
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
			t.Fatal(err)
		}
		c := p.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{
				{HostPath: dir, ContainerPath: "relative"}, {HostPath: dir, ContainerPath: "/a/../detour", ImageSubPath: "sub"},
			}
			c.Devices = []*runtimeapi.Device{{HostPath: "dev/kmsg", Permissions: "r"}, {HostPath: filepath.Join(dir, "empty"), ContainerPath: "/dev/none"}}
			c.Envs = []*runtimeapi.KeyValue{{Key: "A=B", Value: []byte("C")}, {Key: "BYTES", Value: []byte("a\xffb")}}
			c.LogPath = "/sub/../odd.log"
			change(t, c, `{"linux": {"security_context": {"run_as_user": {"value": 7}, "run_as_username": "12:34", "masked_paths": ["", "proc/keys"],
				"namespace_options": {"network": "NODE"}}, "resources": {"cpu_quota": -7}}}`)
		})
		equal(t, "warnings of the container", fields(containerWarnings(t, n, c.ID)),
			"envs[1].value mounts[1].image_sub_path linux.security_context.run_as_user linux.security_context.masked_paths "+
				"linux.security_context.namespace_options.network devices[1].host_path")
		for command, want := range map[string]string{
			`test -d /relative/empty && test -d /detour/empty && echo mounted`: "mounted",
			`test -c /dev/kmsg && echo device`:                                 "device",
			`echo "$A $BYTES"`:                                                 "B=C a\uFFFDb",
			`id -u; id -g`:                                                     "12\n34",
			`wc -c </proc/keys`:                                                "0",
			`cat /proc/sys/kernel/domainname`:                                  "example.com",
			`grep -c . /etc/resolv.conf; grep options /etc/resolv.conf`:        "2\noptions ndots:5 timeout:1",
		} {
			equal(t, command, c.Output("sh", "-c", command), want)
		}
		equal(t, "network", c.Output("readlink", "/proc/self/ns/net"), p.Start([]string{"sleep", "1000"}).Output("readlink", "/proc/self/ns/net"))
		equal(t, "log path", c.Status().GetLogPath(), filepath.Join(p.Config.GetLogDirectory(), "odd.log"))
	})
}

// TestNoLogDirectory: a pod without a log directory runs containers that are not logged, and says so.
func TestNoLogDirectory(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	config := n.PodConfig()
	config.LogDirectory = ""
	answer, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	c := n.PodOf(answer.GetPodSandboxId(), config).Start([]string{"sh", "-c", "echo lost; exec sleep 1000"})
	equal(t, "output of a command", c.Output("echo", "runs"), "runs")
	equal(t, "log path", c.Status().GetLogPath(), "")
	equal(t, "warnings", fields(containerWarnings(t, n, c.ID)), "log_path")
	if _, err := n.Runtime.StopContainer(n.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: -1}); err != nil {
		t.Errorf("stop without time: %v", err)
	}
}
