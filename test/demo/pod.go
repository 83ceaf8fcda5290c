package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// webPort is where the container's web server listens in the pod.
	webPort = 8080
	// page is what it serves.
	page = "hello from a pod"
	// startTimeout bounds the wait for the start of the container.
	startTimeout = 10 * time.Second
	logFile      = "web.log"
)

// script is what the container runs.
const script = `trap 'echo bye; exit 0' TERM
mkdir /tmp/www && echo "` + page + `" >/tmp/www/index.html
httpd -p 8080 -h /tmp/www
n=0
while true; do n=$((n+1)); echo "line $n"; sleep 0.1; done`

func (s *story) podConfig() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "demo", Namespace: "default", Uid: "demo"},
		Hostname:     "demo",
		LogDirectory: filepath.Join(s.dir, "logs"),
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: webPort, HostPort: s.hostPort}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
}

func containerConfig(image string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Command:  []string{"sh", "-c", script},
		LogPath:  logFile,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
}

// address says where the pod is.
func (s *story) address(ctx context.Context) (string, error) {
	answer, err := s.node.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.podID})
	if err != nil {
		return "", err
	}
	ips := []string{answer.GetStatus().GetNetwork().GetIp()}
	for _, more := range answer.GetStatus().GetNetwork().GetAdditionalIps() {
		ips = append(ips, more.GetIp())
	}
	return fmt.Sprintf("%s, port %d of the host", strings.Join(ips, " and "), s.hostPort), nil
}

// exec runs a command in the container.
func (s *story) exec(ctx context.Context, command ...string) (string, error) {
	answer, err := s.node.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: s.container, Cmd: command, Timeout: 10})
	if err != nil {
		return "", err
	}
	if answer.GetExitCode() != 0 {
		return "", fmt.Errorf("it ended with %d: %s", answer.GetExitCode(), answer.GetStderr())
	}
	return string(answer.GetStdout()), nil
}

// fetch asks the pod for its page through the host port, on loopback.
func (s *story) fetch(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	url := fmt.Sprintf("http://127.0.0.1:%d/", s.hostPort)
	for {
		body, err := get(ctx, url)
		if err == nil {
			return fmt.Sprintf("%s: %s", url, body), nil
		}
		// The container may have just started.
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
	return strings.TrimSpace(string(body)), err
}

// logs shows the first lines of the container's log as they are in its file.
func (s *story) logs(lines int) (string, error) {
	data, err := os.ReadFile(filepath.Join(s.pod.GetLogDirectory(), logFile))
	if err != nil {
		return "", err
	}
	all := strings.SplitAfter(string(data), "\n")
	return strings.Join(all[:min(lines, len(all))], ""), nil
}

// state is what must not change about a container when the daemon restarts.
func (s *story) state(ctx context.Context) (string, error) {
	answer, err := s.node.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: s.container})
	if err != nil {
		return "", err
	}
	c := answer.GetStatus()
	return fmt.Sprintf("%s %v started %d", c.GetId(), c.GetState(), c.GetStartedAt()), nil
}

// freePort asks the kernel for an unused port.
func freePort(ctx context.Context) (int32, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp4", "0.0.0.0:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return int32(port), l.Close()
}

// short abbreviates an ID.
func short(id string) string {
	const digits = 12
	algorithm, hex, found := strings.Cut(id, ":")
	if !found {
		return id[:min(digits, len(id))]
	}
	return algorithm + ":" + hex[:min(digits, len(hex))]
}

// removeTree deletes a directory in which nothing must be mounted any more.
func removeTree(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("list mounts beneath %s: %w", dir, err)
	}
	for _, m := range mounts {
		return fmt.Errorf("remove %s: %s is still mounted", dir, m.Mountpoint)
	}
	return os.RemoveAll(dir)
}
