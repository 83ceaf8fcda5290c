package pod

import (
	"context"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod/machine"
)

// effects names every effect of sandboxes and containers.
func effects() []string {
	all := []string{"save"}
	for _, kind := range []*machine.Kind{sandboxSteps.Kind, containerSteps.Kind} {
		for _, step := range kind.Steps {
			if name := step.Name; name != "infra" && name != "checkpoint" { // no shared PID namespace without a supervisor
				all = append(all, "do "+name, "undo "+name)
			}
		}
	}
	return all
}

// life takes a pod with a user namespace, a container that stands for it, one container, a volume and an idmapped mount from run to remove; it ends
// early at the first error.
func (n *node) life(ctx context.Context) error {
	if err := n.runWith(ctx, "web", &runtimeapi.NamespaceOption{
		Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: &runtimeapi.UserNamespace{Uids: ids(), Gids: ids()},
	}, "vm"); err != nil {
		return err
	}
	if err := n.create(ctx, "app", "web", "data", mapped); err != nil {
		return err
	}
	if err := n.engine.StartContainer(ctx, n.ids["app"]); err != nil {
		return err
	}
	if err := n.engine.StopContainer(ctx, n.ids["app"], 0); err != nil {
		return err
	}
	if err := n.engine.RemoveContainer(ctx, n.ids["app"]); err != nil {
		return err
	}
	if err := n.engine.StopSandbox(ctx, n.ids["web"]); err != nil {
		return err
	}
	return n.engine.RemoveSandbox(ctx, n.ids["web"])
}

// clean removes what is listed, as kubelet's garbage collection does.
func (n *node) clean(ctx context.Context) {
	n.t.Helper()
	for _, s := range n.engine.Sandboxes(Filter{}) {
		if err := n.engine.RemoveSandbox(ctx, s.ID); err != nil {
			n.t.Errorf("remove: %v", err)
		}
	}
}

// TestEveryEffectMayFail fails each effect of a pod's life in turn. The life
// then ends with an error that names the stage; after that the same requests
// succeed and nothing is left.
func TestEveryEffectMayFail(t *testing.T) {
	for _, effect := range effects() {
		t.Run(strings.ReplaceAll(effect, " ", "_"), func(t *testing.T) {
			n := newNode(t)
			n.faults.set("fail", effect)
			err := n.life(t.Context())
			if err == nil {
				t.Error("the fault had no effect")
			} else if stage := strings.TrimPrefix(effect, "do "); !strings.Contains(err.Error(), "stage "+stage) {
				t.Errorf("error does not name the stage %q: %v", stage, err)
			}
			n.faults.set("heal", "")
			n.clean(t.Context())
			if err := n.life(t.Context()); err != nil {
				t.Errorf("the same requests after the fault: %v", err)
			}
			n.finish()
		})
	}
}

// TestTheDaemonMayDieInEveryEffect kills the daemon before and after each
// effect of a pod's life in turn. Its successor must account for everything:
// after removing what it lists the host is clean, and the same requests succeed.
func TestTheDaemonMayDieInEveryEffect(t *testing.T) {
	for _, effect := range effects() {
		name := strings.ReplaceAll(effect, " ", "_")
		t.Run("before_"+name, func(t *testing.T) { dieIn(t, effect, false) })
		t.Run("after_"+name, func(t *testing.T) { dieIn(t, effect, true) })
	}
}

func dieIn(t *testing.T, effect string, performed bool) {
	n := newNode(t)
	n.faults.set("hold", effect)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- n.life(ctx) }()
	if !n.faults.awaitHeld() {
		t.Fatal("the effect was not reached")
	}
	n.crash(performed)
	if err := <-ended; err == nil {
		t.Error("the life did not notice that the daemon died")
	}
	n.awaitExits()
	n.clean(t.Context())
	n.engine.waitIdle(ctx)
	if left := n.exists(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := n.life(t.Context()); err != nil {
		t.Errorf("the same requests after the restart: %v", err)
	}
	n.finish()
}
