package pod

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/berth-runtime/berth/internal/pod/machine"
)

// world is what a driver would have made: what exists, and what is on disk.
type world struct {
	t      *testing.T
	rng    *rand.Rand
	kind   *machine.Kind
	probes machine.Set // steps that are looked for after a restart
	stays  machine.Set // steps of which a reboot takes nothing
	exists machine.Set
	disk   *machine.State
	state  machine.State
	stale  bool // a record could not be saved: a step without a probe may be undone and recorded as done
	faults int  // how many more faults there will be
	log    []string
}

var errFault = errors.New("fault")

func (w *world) fault() error {
	if w.faults > 0 && w.rng.IntN(4) == 0 {
		w.faults--
		return errFault
	}
	return nil
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	for _, line := range w.log {
		w.t.Log(line)
	}
	w.t.Fatalf(format, args...)
}

// step feeds an event and performs what comes back until nothing is left to do.
func (w *world) step(ev machine.Event) {
	var effects []machine.Effect
	w.state, effects = w.kind.Step(w.state, ev)
	for n := 0; len(effects) > 0; n++ {
		if n > 200 {
			w.fail("the machine does not come to rest")
		}
		e := effects[0]
		effects = effects[1:]
		w.checkDisk()
		if w.faults > 0 && w.rng.IntN(12) == 0 {
			w.faults--
			if w.rng.IntN(2) == 0 { // the effect took place, but its result is lost
				w.perform(e)
			}
			effects = w.crash()
			continue
		}
		if w.faults > 0 && w.rng.IntN(12) == 0 {
			w.faults--
			more := w.lower()
			effects = append(effects, more...)
			if e.Kind == machine.Settle || e.Kind == machine.Postpone || e.Kind == machine.Forget {
				w.perform(e)
				continue
			}
		}
		effects = append(effects, w.perform(e)...)
	}
}

func (w *world) lower() []machine.Effect {
	level, kind := w.rng.IntN(len(w.kind.Levels)-1), machine.Lower
	if w.rng.IntN(3) == 0 {
		kind = machine.Fall
	}
	w.log = append(w.log, fmt.Sprintf("lower (%d) to %s", kind, w.kind.Levels[level].Name))
	var effects []machine.Effect
	w.state, effects = w.kind.Step(w.state, machine.Event{Kind: kind, Level: level})
	return effects
}

// crash loses everything but the disk and what exists.
func (w *world) crash() []machine.Effect {
	w.log = append(w.log, "crash")
	if w.rng.IntN(4) == 0 {
		w.log = append(w.log, "reboot")
		w.exists &= w.stays
	}
	if w.disk == nil {
		w.state = machine.State{Uses: w.state.Uses}
		if w.exists != 0 {
			w.fail("the crash leaves %b, and there is no record", w.exists)
		}
		return nil
	}
	w.state = machine.State{Goal: w.disk.Goal, Uses: w.disk.Uses, Marks: w.disk.Marks}
	var effects []machine.Effect
	w.state, effects = w.kind.Step(w.state, machine.Event{Kind: machine.Recover})
	return effects
}

func (w *world) perform(e machine.Effect) []machine.Effect {
	ev, report := machine.Event{}, true
	bit := machine.Set(1) << e.Step
	switch e.Kind {
	case machine.Save:
		ev = machine.Event{Kind: machine.Saved, Err: w.fault()}
		if ev.Err == nil {
			saved := w.state
			w.disk = &saved
		}
		w.stale = w.stale || ev.Err != nil
	case machine.Do:
		ev = machine.Event{Kind: machine.DidDo, Err: w.fault()}
		if ev.Err == nil || w.rng.IntN(2) == 0 { // a failure may leave a part
			w.exists |= bit
		}
	case machine.Undo:
		ev = machine.Event{Kind: machine.DidUndo, Err: w.fault()}
		if ev.Err == nil {
			w.exists &^= bit
		}
	case machine.Probe:
		ev = machine.Event{Kind: machine.Probed}
		if w.probes.Has(e.Step) && !w.exists.Has(e.Step) {
			ev.Err = errors.New("gone")
		}
	case machine.Postpone:
		ev = machine.Event{Kind: machine.Retry}
	case machine.Forget:
		w.disk = nil
		if w.exists != 0 {
			w.fail("forgotten while %b exists", w.exists)
		}
		report = false
	case machine.Settle:
		if w.state.Settled() && e.Level == w.state.Goal && (w.exists^w.kind.Want(w.state))&w.certain() != 0 {
			w.fail("settled at %s with %b", w.kind.Levels[w.state.Goal].Name, w.exists)
		}
		report = false
	case machine.Cancel:
		report = false
	}
	w.log = append(w.log, fmt.Sprintf("%d %d err=%v exists=%b", e.Kind, e.Step, ev.Err, w.exists))
	if !report {
		return nil
	}
	var effects []machine.Effect
	w.state, effects = w.kind.Step(w.state, ev)
	return effects
}

// certain returns the steps whose marks are true.
func (w *world) certain() machine.Set {
	if w.stale {
		return w.probes
	}
	return w.kind.All()
}

// checkDisk asserts that a successor would know of all that exists.
func (w *world) checkDisk() {
	for i := range w.kind.Steps {
		if w.exists.Has(i) && (w.disk == nil || w.disk.Marks[i] == machine.Absent) {
			w.fail("step %s exists but the disk has no record of it", w.kind.Steps[i].Name)
		}
	}
}

// TestNothingIsLostWhateverFails walks random histories of the step tables of sandboxes and containers:
// failures, crashes before and after each effect, reboots, and requests that come in between. An object
// always comes to rest with exactly what its goal has, and at every instant the disk has a record of
// everything that exists.
func TestNothingIsLostWhateverFails(t *testing.T) {
	t.Run("sandbox", func(t *testing.T) {
		explore(t, sandboxSteps, sandboxSteps.Set("files", pluginsStep), func(uses machine.Set) machine.Set {
			if uses&sandboxSteps.Set(networkStep) != 0 { // the network lives in a namespace
				uses |= sandboxSteps.Set("namespaces")
			}
			return uses | sandboxSteps.Set("files", "cgroup", pluginsStep)
		})
	})
	t.Run("container", func(t *testing.T) {
		explore(t, containerSteps, containerSteps.Set("snapshot", "checkpoint", containerPluginsStep), func(uses machine.Set) machine.Set {
			return uses | containerSteps.Set("snapshot", "rootfs", "bundle", containerPluginsStep, processStep)
		})
	})
}

// explore walks 20,000 histories of a table. stays are the steps that a reboot leaves alone; always adds
// to a random set of steps those which every object has.
func explore[T any](t *testing.T, table stepTable[T], stays machine.Set, always func(machine.Set) machine.Set) {
	t.Helper()
	var probes machine.Set
	for i, s := range table.steps {
		if s.probe != nil {
			probes |= 1 << i
		}
	}
	for seed := range uint64(20000) {
		w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), kind: table.Kind, probes: probes, stays: stays, faults: 6}
		w.state.Uses = always(machine.Set(w.rng.IntN(int(table.All()) + 1))) //nolint:gosec // a set fits
		w.log = append(w.log, fmt.Sprintf("seed %d uses %b", seed, w.state.Uses))
		for level := 1; level < len(table.Levels); level++ { // as requests raise it: created, then running
			if level == containerLost && len(table.Levels) > 3 {
				continue
			}
			w.step(machine.Event{Kind: machine.Raise, Level: level})
		}
		w.step(machine.Event{Kind: machine.Lower, Level: 1 + w.rng.IntN(len(table.Levels)-2)})
		w.faults = 0
		w.step(machine.Event{Kind: machine.Retry})
		w.step(machine.Event{Kind: machine.Lower, Level: 0})
		if w.exists != 0 || w.disk != nil {
			w.fail("left behind: %b, disk %v", w.exists, w.disk)
		}
	}
}
