package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/node"
	"github.com/berth-runtime/berth/test/registry"
)

// deadline bounds the whole demo.
const deadline = 3 * time.Minute

// story is the demo while it runs.
type story struct {
	*show
	bin, dir  string
	registry  *registry.Registry
	image     string
	node      *node.Node
	pod       *runtimeapi.PodSandboxConfig
	podID     string
	container string
	hostPort  int32
}

func run(ctx context.Context, bin string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		return err
	}
	s := &story{show: newShow(), bin: bin, dir: dir}
	defer func() { err = errors.Join(err, s.clean(context.WithoutCancel(ctx))) }()
	fmt.Fprintln(s.out, s.paint("1;34", "Berth")+": a pod's life on this machine, with the real programs")
	for _, chapter := range []func(context.Context) error{s.prepare, s.start, s.work, s.survive, s.end} {
		if err := chapter(ctx); err != nil {
			if s.node != nil {
				fmt.Fprintf(os.Stderr, "\nthe daemon's log ends:\n%s\n", s.node.LogTail())
			}
			return err
		}
	}
	return nil
}

// prepare builds an image and serves it, and starts the daemon.
func (s *story) prepare(ctx context.Context) error {
	s.chapter("An image and a node")
	return s.steps(
		s.do("build a busybox image", func() (string, error) {
			image, err := imagefactory.Busybox()
			if err != nil {
				return "", err
			}
			if s.registry, err = registry.Start(ctx, registry.Options{}); err != nil {
				return "", err
			}
			s.image = s.registry.Host + "/busybox:1"
			to := imagefactory.Target{Host: s.registry.Host, Repository: "busybox"}
			return "pushed to docker-registry as " + s.image, imagefactory.Push(ctx, to, image, "1")
		}),
		s.do("start berthd", func() (string, error) {
			err := s.trust()
			if err != nil {
				return "", err
			}
			if s.node, err = node.Start(ctx, node.Options{Bin: s.bin, Dir: s.dir, Configure: configure}); err != nil {
				return "", err
			}
			v, err := s.node.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%s %s answers CRI %s", v.GetRuntimeName(), v.GetRuntimeVersion(), v.GetRuntimeApiVersion()), nil
		}),
	)
}

// configure gives the demo's node a network of its own.
func configure(c *config.Config) {
	c.Network.Builtin = config.BuiltinAlways
	c.Network.BuiltinSubnet = []string{"10.199.0.0/24", "fd62:e7c4:199::/64"}
}

// trust lets the node speak plain HTTP to the registry, the way an administrator would: with a hosts.toml.
func (s *story) trust() error {
	hosts := filepath.Join(s.dir, "certs.d", s.registry.Host, "hosts.toml")
	if err := os.MkdirAll(filepath.Dir(hosts), 0o755); err != nil {
		return err
	}
	return os.WriteFile(hosts, fmt.Appendf(nil, "server = %q\n", "http://"+s.registry.Host), 0o644)
}

// start brings up a pod with a container that serves a page.
func (s *story) start(ctx context.Context) error {
	s.chapter("A pod")
	return s.steps(
		s.do("pull the image", func() (string, error) {
			answer, err := s.node.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: s.image}})
			return short(answer.GetImageRef()), err
		}),
		s.do("run a pod", func() (string, error) {
			var err error
			if s.hostPort, err = freePort(ctx); err != nil {
				return "", err
			}
			s.pod = s.podConfig()
			if err := os.MkdirAll(s.pod.GetLogDirectory(), 0o755); err != nil {
				return "", err
			}
			answer, err := s.node.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: s.pod})
			if err != nil {
				return "", err
			}
			s.podID = answer.GetPodSandboxId()
			return s.address(ctx)
		}),
		s.do("create a container", func() (string, error) {
			answer, err := s.node.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
				PodSandboxId: s.podID, SandboxConfig: s.pod, Config: containerConfig(s.image),
			})
			s.container = answer.GetContainerId()
			return short(s.container), err
		}),
		s.do("start it", func() (string, error) {
			_, err := s.node.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: s.container})
			return "sh counts on its log, httpd serves a page", err
		}),
	)
}

// work uses the pod as a cluster would.
func (s *story) work(ctx context.Context) error {
	s.chapter("Using it")
	return s.steps(
		s.do("run a command in it", func() (string, error) { return s.exec(ctx, "uname", "-n") }),
		s.do("exec once more, warm", func() (string, error) { return s.exec(ctx, "echo", "separate streams, exit code, deadline") }),
		s.do("ask it over its host port", func() (string, error) { return s.fetch(ctx) }),
		s.do("read its log", func() (string, error) { return s.logs(2) }),
		s.do("list what runs (berth ps)", func() (string, error) { return s.node.Berth(ctx, "ps") }),
	)
}

// survive kills the daemon, and shows that the container is not affected.
func (s *story) survive(ctx context.Context) error {
	s.chapter("kill -9 berthd")
	before := ""
	return s.steps(
		s.do("kill it", func() (string, error) {
			var err error
			if before, err = s.state(ctx); err != nil {
				return "", err
			}
			return "the container's parent is berth-shim, it does not notice", s.node.Kill()
		}),
		s.do("ask the pod meanwhile", func() (string, error) { return s.fetch(ctx) }),
		s.do("start it again", func() (string, error) {
			if err := s.node.StartDaemon(ctx); err != nil {
				return "", err
			}
			after, err := s.state(ctx)
			if err == nil && after != before {
				err = fmt.Errorf("the container was %q and is now %q", before, after)
			}
			return "same container, same start time, same state", err
		}),
		s.do("run a command in it", func() (string, error) { return s.exec(ctx, "uname", "-n") }),
	)
}

// end takes the pod away.
func (s *story) end(ctx context.Context) error {
	s.chapter("Taking it away")
	return s.steps(
		s.do("stop the container", func() (string, error) {
			_, err := s.node.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: s.container, Timeout: 5})
			if err != nil {
				return "", err
			}
			answer, err := s.node.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: s.container})
			return fmt.Sprintf("it handled SIGTERM and ended with %d", answer.GetStatus().GetExitCode()), err
		}),
		s.do("stop the pod", func() (string, error) {
			_, err := s.node.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.podID})
			return "address released", err
		}),
		s.do("remove it", func() (string, error) {
			_, err := s.node.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.podID})
			return "with its container", err
		}),
	)
}

// clean ends everything, also after a failure or Ctrl-C.
func (s *story) clean(ctx context.Context) error {
	var errs []error
	if s.node != nil {
		errs = append(errs, s.step("end berthd and berth-shim", func() (string, error) { return "nothing is left", s.node.Close(ctx) }))
	}
	if s.registry != nil {
		errs = append(errs, s.registry.Stop())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up: %w; see %s", err, s.dir)
	}
	if err := removeTree(s.dir); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	fmt.Fprintf(s.out, "\n%s %s\n", s.paint("1", "Done in"), pretty(time.Since(s.began)))
	return nil
}
