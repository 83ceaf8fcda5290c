package integration

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/registry"
)

// ends are the calls that end something, by name.
func ends(n *harness.Node, podID, id string) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"StopContainer": func(ctx context.Context) error {
			_, err := n.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
			return err
		},
		"RemoveContainer": func(ctx context.Context) error {
			_, err := n.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			return err
		},
		"StopPodSandbox": func(ctx context.Context) error {
			_, err := n.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID})
			return err
		},
		"RemovePodSandbox": func(ctx context.Context) error {
			_, err := n.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID})
			return err
		},
		"RemoveImage": func(ctx context.Context) error {
			_, err := n.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: n.Image}})
			return err
		},
	}
}

var endOrder = []string{"StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox", "RemoveImage"}

// TestRepeatedStops: every call that ends something may be made again, also after a restart of the daemon and when all that it
// is about is gone.
func TestRepeatedStops(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod()
		c := p.Start([]string{"sleep", "1000"})
		calls := ends(n, p.ID, c.ID)
		again := func(when string, names ...string) {
			t.Helper()
			for _, name := range names {
				for range 2 {
					if err := calls[name](n.Context()); err != nil {
						t.Errorf("%s %s: %v", name, when, err)
					}
				}
			}
		}
		for i, name := range endOrder {
			again("at its time", name)
			again("later", endOrder[:i]...)
		}
		n.KillDaemon()
		again("when all is gone and the daemon was killed", endOrder...)
	})
}

// TestConcurrentCalls: many callers may want the same at once. Each gets its answer when the work is done.
func TestConcurrentCalls(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		const callers = 8
		n.Pull()
		p := n.RunPod()
		config := n.ContainerConfig([]string{"sh", "-c", "trap '' TERM; echo ready; while true; do sleep 0.05; done"})
		ids, starts := make([]string, callers), make([]error, callers)
		var calls errgroup.Group
		for i := range callers {
			calls.Go(func() error {
				_, err := pull(n, n.Image)
				return err
			})
			calls.Go(func() error {
				c, err := p.Create(config)
				if err == nil {
					ids[i] = c.ID
				}
				return err
			})
		}
		// A name can be given once: a request after the ID was given is refused.
		if err := calls.Wait(); err != nil && status.Code(err) != codes.AlreadyExists {
			t.Fatalf("create and pull at once: %v", err)
		}
		all := containers(t, n, &runtimeapi.ContainerFilter{PodSandboxId: p.ID})
		if len(all) != 1 {
			t.Fatalf("containers after creating one %d times at once: %v", callers, all)
		}
		for _, id := range ids {
			if id != "" && id != all[0] {
				t.Errorf("a caller was given container %s, but there is only %s", id, all[0])
			}
		}
		var started sync.WaitGroup
		for i := range callers {
			started.Go(func() {
				_, starts[i] = n.Runtime.StartContainer(n.Context(), &runtimeapi.StartContainerRequest{ContainerId: all[0]})
			})
		}
		started.Wait()
		for _, err := range starts {
			if code := status.Code(err); code != codes.OK && code != codes.FailedPrecondition {
				t.Errorf("start at once: %v", err)
			}
		}
		if !anyNil(starts) {
			t.Fatalf("no caller started the container: %v", errors.Join(starts...))
		}
		stopAtOnce(t, n, all[0])
		for _, name := range endOrder {
			var removals errgroup.Group
			for range callers {
				removals.Go(func() error { return ends(n, p.ID, all[0])[name](n.Context()) })
			}
			if err := removals.Wait(); err != nil {
				t.Errorf("%s at once: %v", name, err)
			}
		}
	})
}

func anyNil(errs []error) bool {
	for _, err := range errs {
		if err == nil {
			return true
		}
	}
	return false
}

// stopAtOnce stops a container that ignores the signal, with a grace that is longer than any test, and then with a short one:
// that one wins, for both.
func stopAtOnce(t *testing.T, n *harness.Node, id string) {
	t.Helper()
	var stops errgroup.Group
	for _, grace := range []int64{3600, 1} {
		stops.Go(func() error {
			if grace == 1 {
				n.Eventually("the longer stop has begun", func() error {
					answer, err := n.Runtime.ContainerStatus(n.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
					if err == nil && answer.GetStatus().GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
						err = fmt.Errorf("state %v", answer.GetStatus().GetState())
					}
					return err
				})
			}
			_, err := n.Runtime.StopContainer(n.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace})
			return err
		})
	}
	if err := stops.Wait(); err != nil {
		t.Errorf("stop with a long and a short grace at once: %v", err)
	}
}

// TestEnvironmentAndDirectory: variables come byte by byte, those of the request win over the image's, and commands run later
// have them too, as they have the working directory, which is made where the image lacks it. A value
// that no process can have is refused.
func TestEnvironmentAndDirectory(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		c := n.RunPod().Start([]string{"sh", "-c", "sleep 1000"}, func(c *runtimeapi.ContainerConfig) {
			c.WorkingDir = "/not/there/before"
			c.Envs = []*runtimeapi.KeyValue{
				{Key: "PATH", Value: []byte("/bin:/sbin")}, {Key: "EMPTY"}, {Key: "BYTES", Value: []byte("a=b\n\t\u00e4\x01 c")},
				{Key: "TWICE", Value: []byte("first")}, {Key: "TWICE", Value: []byte("last")},
			}
		})
		equal(t, "path", c.Output("sh", "-c", "echo $PATH"), "/bin:/sbin")
		equal(t, "variable without a value", c.Output("sh", "-c", "echo ${EMPTY-unset}"), "")
		equal(t, "variable of any bytes", c.Output("sh", "-c", `printf %s "$BYTES"`), "a=b\n\t\u00e4\x01 c")
		equal(t, "variable that is named twice", c.Output("sh", "-c", "echo $TWICE"), "last")
		equal(t, "working directory of a command", c.Output("pwd"), "/not/there/before")
		equal(t, "working directory of the container", c.Output("readlink", "/proc/1/cwd"), "/not/there/before")
		_, err := n.RunPod().Create(n.ContainerConfig([]string{"true"}, func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "BYTES", Value: []byte{'a', 0}}}
		}))
		wantError(t, err, codes.InvalidArgument, "envs[0].value", "BYTES")
	})
}

// TestCredentials: each way of the CRI to say who pulls is understood.
func TestCredentials(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	for name, c := range map[string]struct {
		registry registry.Options
		good     *runtimeapi.AuthConfig
		bad      *runtimeapi.AuthConfig
	}{
		"auth-basic":  {registry.Options{Username: "me", Password: "secret"}, &runtimeapi.AuthConfig{Auth: encoded}, &runtimeapi.AuthConfig{Auth: base64.StdEncoding.EncodeToString([]byte("me:no"))}},
		"auth-bearer": {registry.Options{Username: "me", Password: "secret", Bearer: true}, &runtimeapi.AuthConfig{Auth: encoded}, &runtimeapi.AuthConfig{Auth: "not base64!"}},
		"identity-token": {
			registry.Options{Username: "me", Password: "secret", Bearer: true, IdentityToken: "who-i-am"},
			&runtimeapi.AuthConfig{IdentityToken: "who-i-am"}, &runtimeapi.AuthConfig{IdentityToken: "another-one"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := harness.Start(t, harness.Options{Registry: c.registry})
			ask := func(auth *runtimeapi.AuthConfig) error {
				_, err := n.Images.PullImage(n.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.Image}, Auth: auth})
				return err
			}
			if err := ask(c.bad); err == nil {
				t.Error("a pull with wrong credentials succeeds")
			}
			if err := ask(c.good); err != nil {
				t.Errorf("pull: %v", err)
			}
		})
	}
}
