// Package machine is the pure core of the pod engine: it decides what is done
// next to bring a sandbox or a container to its goal, and what is undone when
// that fails. It has no goroutine, no clock and does no I/O.
//
// An object is a row of steps. Each step is a {do, undo, probe} triple that
// a driver performs; here it is only a mark:
//
//	         Plan                Do succeeds
//	Absent ────────▶ Intended ───────────────▶ Done
//	   ▲                 │                       │
//	   └─────────────────┴───────────────────────┘
//	                 Undo succeeds
//
// A goal is a level: the set of steps that shall be done. Raise and Lower move
// the goal; Next compares the marks with it and says what to do. Whatever dies
// in between, the marks that were saved tell a successor what there may be to
// undo: a step is Intended on disk before anything of it is done.
//
// The driver performs one effect at a time and feeds its result back:
//
//	driver                         machine
//	  │  Event{Raise Ready}           │
//	  ├──────────────────────────────▶│ marks all wanted steps Intended
//	  │◀─────────────────────────────┤ Save
//	  │  Saved                        │
//	  ├──────────────────────────────▶│
//	  │◀─────────────────────────────┤ Do{first}
//	  │  DidDo{first}                 │
//	  ├──────────────────────────────▶│ … until all are Done
//	  │◀─────────────────────────────┤ Save, then Settle
package machine

import "fmt"

// Mark says how far a step is.
type Mark uint8

// The marks of a step.
const (
	Absent   Mark = iota // nothing of it exists
	Intended             // something of it may exist
	Done                 // it exists
)

// String names the mark.
func (m Mark) String() string {
	return [...]string{"absent", "intended", "done"}[m]
}

// Op says what is in flight.
type Op uint8

// The operations that a driver performs.
const (
	Idle Op = iota
	Saving
	Doing
	Undoing
	Probing
)

// String names the operation.
func (o Op) String() string {
	return [...]string{"idle", "save", "do", "undo", "probe"}[o]
}

// State is all that the machine knows of one object. It is a value: Step
// never changes what it is given. The exported fields are what is saved.
type State struct {
	// Goal is the level that the object is brought to.
	Goal int
	// Uses are the steps that this object has at all: a sandbox on the host's
	// network has no network step.
	Uses Set
	// Marks tells how far each step is.
	Marks [MaxSteps]Mark

	op       Op
	at       int  // the step of op
	tried    Set  // steps whose Do may have been begun
	rising   bool // a Raise is under way
	dirty    bool // the marks differ from what was saved
	ungoaled bool // the goal is lower than what was saved
	blocked  bool // an undo failed; waits for Retry or a new request
	settled  bool // the goal is reached and was announced
	failure  error
	suspects Set    // steps to probe after a restart
	missing  Set    // steps that a probe did not find and that are done again
	fall     *Event // a Fall that waits for the rise under way to end
}

// Failure is the first error on the way to a goal that had to be given up.
func (s State) Failure() error { return s.failure }

// Rising reports whether a Raise is under way and still has a chance.
func (s State) Rising() bool { return s.rising }

// Settled reports whether the object is at its goal and nothing is in flight.
func (s State) Settled() bool { return s.settled && s.op == Idle }

// Blocked reports whether an undo failed and waits to be tried again.
func (s State) Blocked() bool { return s.blocked }

// InFlight is the operation being performed and its step.
func (s State) InFlight() (Op, int) { return s.op, s.at }

// EventKind says what happened.
type EventKind uint8

// The events that the machine understands.
const (
	Raise   EventKind = iota // a request wants the object at a higher level
	Lower                    // a request wants it at a lower level, whatever is in flight
	Fall                     // it fell to a lower level by itself, as a container that exits
	Saved                    // Save ended
	DidDo                    // Do ended
	DidUndo                  // Undo ended
	Probed                   // Probe ended; Err tells that the step is gone
	Retry                    // the time after a failed undo is over
	Recover                  // the daemon has started and read this state
)

// Event is something that happened to an object.
type Event struct {
	Kind  EventKind
	Level int   // of Raise, Lower and Fall
	Err   error // of Saved, DidDo, DidUndo, Probed: nil is success. Of Lower and Fall: why
}

// EffectKind says what the driver has to do.
type EffectKind uint8

// The effects that the machine asks for.
const (
	Save     EffectKind = iota // write the state down, then send Saved
	Do                         // perform the step, then send DidDo
	Undo                       // undo the step, then send DidUndo
	Probe                      // look whether the step is still there, then send Probed
	Cancel                     // end the Do in flight early; its DidDo still comes
	Settle                     // tell those who wait: the goal is reached, or Err
	Postpone                   // tell those who wait of Err, send Retry after a while
	Forget                     // remove the record; nothing of the object is left
)

// Effect is something for the driver to do.
type Effect struct {
	Kind  EffectKind
	Step  int   // of Do, Undo, Probe, Cancel
	Level int   // of Settle: the level reached
	Err   error // of Settle and Postpone
}

// Step takes an event into account and says what has to be done about it.
func (k *Kind) Step(s State, ev Event) (State, []Effect) {
	switch ev.Kind {
	case Raise:
		return k.raise(s, ev)
	case Lower:
		return k.lower(s, ev)
	case Fall:
		if s.rising {
			s.fall = &ev
			return s, nil
		}
		return k.lower(s, ev)
	case Recover:
		return k.recover(s)
	case Retry:
		s.blocked = false
		return k.next(s)
	case Saved, DidDo, DidUndo, Probed:
		return k.ended(s, ev)
	}
	panic(fmt.Sprintf("machine: unknown event %d", ev.Kind))
}

func (k *Kind) raise(s State, ev Event) (State, []Effect) {
	if ev.Level <= s.Goal {
		return s, nil
	}
	s.Goal, s.failure, s.tried = ev.Level, nil, k.present(s)
	s.rising, s.settled, s.blocked = true, false, false
	return k.next(s)
}

// lower never waits for an effect in flight to end by itself when that effect
// is building something that is not wanted any more. A level that was never
// reached is not lowered from: the object goes back to where it came from.
func (k *Kind) lower(s State, ev Event) (State, []Effect) {
	s.blocked = false
	if s.rising && ev.Level < s.Goal {
		ev.Level = min(ev.Level, k.Levels[s.Goal].Fallback)
	}
	if ev.Level < s.Goal {
		s.Goal, s.failure, s.fall = ev.Level, ev.Err, nil
		s.rising, s.settled, s.ungoaled = false, false, true
		s = k.dropUntried(s)
		if s.op == Doing && !k.Want(s).Has(s.at) {
			return s, []Effect{{Kind: Cancel, Step: s.at}}
		}
	}
	return k.next(s)
}

// recover looks at a state that a previous daemon saved. A goal that it had
// not reached is given up: its caller is gone.
func (k *Kind) recover(s State) (State, []Effect) {
	want := k.Want(s)
	s.tried = k.present(s)
	for i := range k.Steps {
		switch {
		case s.Marks[i] == Done && want.Has(i), s.Marks[i] == Intended && want.Has(i) && k.Steps[i].Adopt:
			s.suspects |= 1 << i
		case s.Marks[i] != Done && want.Has(i):
			s.Goal, s.suspects = k.Levels[s.Goal].Fallback, 0
			return k.recover(s)
		}
	}
	return k.next(s)
}

func (k *Kind) ended(s State, ev Event) (State, []Effect) {
	op, at := s.op, s.at
	s.op = Idle
	switch {
	case op == Saving && ev.Kind == Saved:
		s.dirty, s.ungoaled = false, false
		if ev.Err != nil {
			return k.unsaved(s, ev.Err)
		}
	case op == Doing && ev.Kind == DidDo:
		again := s.missing.Has(at)
		s.missing &^= 1 << at
		switch {
		case ev.Err != nil && again:
			s = k.lost(s, at, ev.Err)
		case ev.Err != nil:
			s = k.giveUp(s, ev.Err)
		case s.Marks[at] != Done:
			s.Marks[at], s.dirty = Done, true
		}
	case op == Undoing && ev.Kind == DidUndo:
		if ev.Err != nil {
			s.blocked = true
			return s, []Effect{{Kind: Postpone, Step: at, Err: ev.Err}}
		}
		s.Marks[at], s.dirty = Absent, true
	case op == Probing && ev.Kind == Probed:
		s.suspects &^= 1 << at
		switch {
		case ev.Err != nil && k.Steps[at].Again:
			s.missing |= 1 << at
		case ev.Err != nil:
			s = k.lost(s, at, ev.Err)
		case s.Marks[at] != Done:
			s.Marks[at], s.dirty = Done, true
		}
	default:
		panic(fmt.Sprintf("machine: %s ended with event %d", op, ev.Kind))
	}
	return k.next(s)
}

// giveUp goes back to where a failure on the way up leaves the object.
func (k *Kind) giveUp(s State, err error) State {
	if s.rising {
		s.Goal, s.rising, s.failure = k.Levels[s.Goal].Fallback, false, err
	}
	return k.dropUntried(s)
}

// dropUntried forgets what was intended, is wanted no more and was never
// begun: it needs no undo.
func (k *Kind) dropUntried(s State) State {
	for i := range k.Steps {
		if s.Marks[i] == Intended && !s.tried.Has(i) && !k.Want(s).Has(i) {
			s.Marks[i], s.dirty = Absent, true
		}
	}
	return s
}

// lost lowers the goal to the first level that can do without the step.
func (k *Kind) lost(s State, at int, err error) State {
	for k.Want(s).Has(at) {
		s.Goal = k.Levels[s.Goal].Lost
	}
	s.failure = err
	return s
}

// unsaved handles a record that cannot be written. On the way up the goal is given up, down to a level
// that needs nothing of the plan: a successor would not know of the object. On the way down the work is
// done all the same: an old record only makes a successor do it again.
func (k *Kind) unsaved(s State, err error) (State, []Effect) {
	s = k.giveUp(s, err)
	for k.hasPlan(s) {
		s.Goal = k.Levels[s.Goal].Fallback
	}
	s = k.dropUntried(s)
	s.dirty = false
	return k.next(s)
}

// hasPlan reports whether a step that was never begun is intended for the goal.
func (k *Kind) hasPlan(s State) bool {
	for i := range k.Steps {
		if s.Marks[i] == Intended && !s.tried.Has(i) && k.Want(s).Has(i) {
			return true
		}
	}
	return false
}
