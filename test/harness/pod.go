package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is a sandbox that a test runs.
type Pod struct {
	ID     string
	Config *runtimeapi.PodSandboxConfig

	n *Node
}

// Container is a container that a test runs.
type Container struct {
	ID     string
	Config *runtimeapi.ContainerConfig

	pod *Pod
}

var podNumber atomic.Int64

// PodConfig describes a pod as the kubelet does, with the changes that a test wants.
func (n *Node) PodConfig(change ...func(*runtimeapi.PodSandboxConfig)) *runtimeapi.PodSandboxConfig {
	name := fmt.Sprintf("pod%d", podNumber.Add(1))
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(n.Dir(), "logs", name),
		Labels:       map[string]string{"io.kubernetes.pod.uid": "uid-" + name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: n.cgroupParent(),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// RunPod runs a pod with the default handler.
func (n *Node) RunPod(change ...func(*runtimeapi.PodSandboxConfig)) *Pod {
	n.t.Helper()
	return n.RunPodWith("", change...)
}

// RunPodWith runs a pod with a handler.
func (n *Node) RunPodWith(handler string, change ...func(*runtimeapi.PodSandboxConfig)) *Pod {
	n.t.Helper()
	config := n.PodConfig(change...)
	if err := os.MkdirAll(config.GetLogDirectory(), 0o755); err != nil {
		n.t.Fatal(err)
	}
	answer, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		n.t.Fatalf("run pod: %v", err)
	}
	return &Pod{ID: answer.GetPodSandboxId(), Config: config, n: n}
}

// PodOf is a sandbox that is there already.
func (n *Node) PodOf(id string, config *runtimeapi.PodSandboxConfig) *Pod {
	return &Pod{ID: id, Config: config, n: n}
}

// ContainerOf is a container of the pod that is there already.
func (p *Pod) ContainerOf(id string, config *runtimeapi.ContainerConfig) *Container {
	return &Container{ID: id, Config: config, pod: p}
}

// Pull pulls the node's image unless it is there, and returns its ID.
func (n *Node) Pull() string {
	n.t.Helper()
	answer, err := n.Images.PullImage(n.Context(), &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: n.Image},
		Auth:  &runtimeapi.AuthConfig{Username: n.Registry.Username, Password: n.Registry.Password},
	})
	if err != nil {
		n.t.Fatalf("pull %s: %v", n.Image, err)
	}
	return answer.GetImageRef()
}

// ContainerConfig describes a container that runs a command of the node's image.
func (n *Node) ContainerConfig(command []string, change ...func(*runtimeapi.ContainerConfig)) *runtimeapi.ContainerConfig {
	name := fmt.Sprintf("c%d", podNumber.Add(1))
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: n.Image},
		Command:  command,
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// Create makes a container and returns what the API says.
func (p *Pod) Create(config *runtimeapi.ContainerConfig) (*Container, error) {
	answer, err := p.n.Runtime.CreateContainer(p.n.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config,
	})
	if err != nil {
		return nil, err
	}
	return &Container{ID: answer.GetContainerId(), Config: config, pod: p}, nil
}

// Start creates and starts a container, whose image is pulled first.
func (p *Pod) Start(command []string, change ...func(*runtimeapi.ContainerConfig)) *Container {
	p.n.t.Helper()
	p.n.Pull()
	c, err := p.Create(p.n.ContainerConfig(command, change...))
	if err != nil {
		p.n.t.Fatalf("create container: %v", err)
	}
	if err := c.Start(); err != nil {
		p.n.t.Fatalf("start container: %v", err)
	}
	return c
}

// Status is what the API says about the pod.
func (p *Pod) Status() *runtimeapi.PodSandboxStatus {
	p.n.t.Helper()
	answer, err := p.n.Runtime.PodSandboxStatus(p.n.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		p.n.t.Fatalf("get status of pod: %v", err)
	}
	return answer.GetStatus()
}

// IP is the pod's first address.
func (p *Pod) IP() string { return p.Status().GetNetwork().GetIp() }

// Stop stops the pod.
func (p *Pod) Stop() {
	p.n.t.Helper()
	if _, err := p.n.Runtime.StopPodSandbox(p.n.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.n.t.Fatalf("stop pod: %v", err)
	}
}

// Remove removes the pod.
func (p *Pod) Remove() {
	p.n.t.Helper()
	if _, err := p.n.Runtime.RemovePodSandbox(p.n.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.n.t.Fatalf("remove pod: %v", err)
	}
}

// Start starts the container.
func (c *Container) Start() error {
	_, err := c.pod.n.Runtime.StartContainer(c.pod.n.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ID})
	return err
}

// Stop stops the container after so many seconds of grace.
func (c *Container) Stop(grace int64) {
	c.pod.n.t.Helper()
	_, err := c.pod.n.Runtime.StopContainer(c.pod.n.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: grace})
	if err != nil {
		c.pod.n.t.Fatalf("stop container: %v", err)
	}
}

// Remove removes the container.
func (c *Container) Remove() {
	c.pod.n.t.Helper()
	_, err := c.pod.n.Runtime.RemoveContainer(c.pod.n.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c.ID})
	if err != nil {
		c.pod.n.t.Fatalf("remove container: %v", err)
	}
}

// Status is what the API says about the container.
func (c *Container) Status() *runtimeapi.ContainerStatus {
	c.pod.n.t.Helper()
	answer, err := c.pod.n.Runtime.ContainerStatus(c.pod.n.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
	if err != nil {
		c.pod.n.t.Fatalf("get status of container: %v", err)
	}
	return answer.GetStatus()
}

// Exited waits for the end of the container and returns its status.
func (c *Container) Exited() *runtimeapi.ContainerStatus {
	c.pod.n.t.Helper()
	var status *runtimeapi.ContainerStatus
	c.pod.n.Eventually("container "+c.Config.GetMetadata().GetName()+" has exited", func() error {
		if status = c.Status(); status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("its state is %v", status.GetState())
		}
		return nil
	})
	return status
}

// Exec runs a command in the container and returns its answer.
func (c *Container) Exec(command ...string) *runtimeapi.ExecSyncResponse {
	c.pod.n.t.Helper()
	answer, err := c.pod.n.Runtime.ExecSync(c.pod.n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: command})
	if err != nil {
		c.pod.n.t.Fatalf("run %q in container: %v", command, err)
	}
	return answer
}

// Output runs a command in the container, which must succeed, and returns what it writes without the last newline.
func (c *Container) Output(command ...string) string {
	c.pod.n.t.Helper()
	answer := c.Exec(command...)
	if answer.GetExitCode() != 0 {
		c.pod.n.t.Fatalf("%q ends with %d: %s", command, answer.GetExitCode(), answer.GetStderr())
	}
	return strings.TrimRight(string(answer.GetStdout()), "\n")
}

// LogFile is the path of the container's log.
func (c *Container) LogFile() string {
	return filepath.Join(c.pod.Config.GetLogDirectory(), c.Config.GetLogPath())
}

// LogLines reads the container's log: "stream tag text" of each line, without the time.
func (c *Container) LogLines() []string {
	c.pod.n.t.Helper()
	data, err := os.ReadFile(c.LogFile())
	if err != nil {
		c.pod.n.t.Fatalf("read log: %v", err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		lines = append(lines, rest)
	}
	return lines
}
