package machine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

var sandboxKind = NewKind("sandbox", []Level{
	{Name: "gone"},
	{Name: "stopped", Fallback: 0},
	{Name: "ready", Fallback: 0, Lost: 1},
}, []Step{{Name: "files", From: 1}, {Name: "cgroup", From: 2, Again: true}, {Name: "namespaces", From: 2}, {Name: "infra", From: 2}, {Name: "network", From: 2}})

// world is what a driver would have made: what exists, and what is on disk.
type world struct {
	t      *testing.T
	rng    *rand.Rand
	kind   *Kind
	exists Set
	disk   *State
	state  State
	faults int // how many more faults there will be
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
func (w *world) step(ev Event) {
	var effects []Effect
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
			effects = w.crash()
			continue
		}
		if w.faults > 0 && w.rng.IntN(12) == 0 {
			w.faults--
			more := w.lower()
			effects = append(effects, more...)
			if e.Kind == Settle || e.Kind == Postpone || e.Kind == Forget {
				w.perform(e)
				continue
			}
		}
		effects = append(effects, w.perform(e)...)
	}
}

func (w *world) lower() []Effect {
	level, kind := w.rng.IntN(len(w.kind.Levels)-1), Lower
	if w.rng.IntN(3) == 0 {
		kind = Fall
	}
	w.log = append(w.log, fmt.Sprintf("lower (%d) to %s", kind, w.kind.Levels[level].Name))
	var effects []Effect
	w.state, effects = w.kind.Step(w.state, Event{Kind: kind, Level: level})
	return effects
}

// crash loses everything but the disk and what exists.
func (w *world) crash() []Effect {
	w.log = append(w.log, "crash")
	if w.disk == nil {
		w.state = State{Uses: w.state.Uses}
		if w.exists != 0 {
			w.fail("crash leaves %05b that no record tells of", w.exists)
		}
		return nil
	}
	w.state = State{Goal: w.disk.Goal, Uses: w.disk.Uses, Marks: w.disk.Marks}
	var effects []Effect
	w.state, effects = w.kind.Step(w.state, Event{Kind: Recover})
	return effects
}

func (w *world) perform(e Effect) []Effect {
	ev, report := Event{}, true
	bit := Set(1) << e.Step
	switch e.Kind {
	case Save:
		ev = Event{Kind: Saved, Err: w.fault()}
		if ev.Err == nil {
			saved := w.state
			w.disk = &saved
		}
	case Do:
		ev = Event{Kind: DidDo, Err: w.fault()}
		if ev.Err == nil || w.rng.IntN(2) == 0 { // a failure may leave a part
			w.exists |= bit
		}
	case Undo:
		ev = Event{Kind: DidUndo, Err: w.fault()}
		if ev.Err == nil {
			w.exists &^= bit
		}
	case Probe:
		ev = Event{Kind: Probed}
		if !w.exists.Has(e.Step) {
			ev.Err = errors.New("gone")
		}
	case Postpone:
		ev = Event{Kind: Retry}
	case Forget:
		w.disk = nil
		if w.exists != 0 {
			w.fail("forgotten while %05b exists", w.exists)
		}
		report = false
	case Settle:
		if w.state.Settled() && e.Level == w.state.Goal && w.exists != w.kind.want(w.state) {
			w.fail("settled at %s with %05b", w.kind.Levels[w.state.Goal].Name, w.exists)
		}
		report = false
	case Cancel:
		report = false
	}
	w.log = append(w.log, fmt.Sprintf("%d %d err=%v exists=%05b", e.Kind, e.Step, ev.Err, w.exists))
	if !report {
		return nil
	}
	var effects []Effect
	w.state, effects = w.kind.Step(w.state, ev)
	return effects
}

// checkDisk asserts that a successor would know of all that exists.
func (w *world) checkDisk() {
	for i := range w.kind.Steps {
		if w.exists.Has(i) && (w.disk == nil || w.disk.Marks[i] == Absent) {
			w.fail("step %s exists but the disk does not tell", w.kind.Steps[i].Name)
		}
	}
}

// TestNothingIsLostWhateverFails walks random histories of failures, crashes
// and requests that come in between, and asserts that an object always comes
// to rest with exactly what its goal wants, and that at every instant the disk
// tells of everything that exists.
func TestNothingIsLostWhateverFails(t *testing.T) {
	for seed := range uint64(20000) {
		w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), kind: sandboxKind, faults: 6}
		w.state.Uses = Set(w.rng.IntN(32)) | 1
		w.log = append(w.log, fmt.Sprintf("seed %d uses %05b", seed, w.state.Uses))
		w.step(Event{Kind: Raise, Level: 2})
		w.step(Event{Kind: Lower, Level: 1})
		w.faults = 0
		w.step(Event{Kind: Retry})
		w.step(Event{Kind: Lower, Level: 0})
		if w.exists != 0 || w.disk != nil {
			w.fail("left behind: %05b, disk %v", w.exists, w.disk)
		}
	}
}
