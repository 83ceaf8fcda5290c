package machine

import "slices"

// present are the steps of which something may exist.
func (k *Kind) present(s State) Set {
	var set Set
	for i := range k.Steps {
		if s.Marks[i] != Absent {
			set |= 1 << i
		}
	}
	return set
}

// Want returns the steps that an object shall have at its goal.
func (k *Kind) Want(s State) Set {
	return k.Levels[s.Goal].steps & s.Uses
}

// next compares the marks with the goal.
func (k *Kind) next(s State) (State, []Effect) {
	if s.op != Idle || s.blocked {
		return s, nil
	}
	want := k.Want(s)
	if i := highest(s.suspects & want); i >= 0 {
		s.op, s.at = Probing, i
		return s, []Effect{{Kind: Probe, Step: i}}
	}
	for i := range slices.Backward(k.Steps) {
		if s.Marks[i] != Absent && !want.Has(i) {
			if s.ungoaled {
				s.op = Saving
				return s, []Effect{{Kind: Save}}
			}
			s.op, s.at = Undoing, i
			return s, []Effect{{Kind: Undo, Step: i}}
		}
	}
	if s, planned := k.plan(s, want); planned {
		s.op = Saving
		return s, []Effect{{Kind: Save}}
	}
	for i := range k.Steps {
		if s.Marks[i] == Intended || (s.missing & want).Has(i) {
			s.op, s.at, s.tried = Doing, i, s.tried|1<<i
			return s, []Effect{{Kind: Do, Step: i}}
		}
	}
	return k.settle(s)
}

// plan marks every missing step as intended, so that one Save covers them all.
func (k *Kind) plan(s State, want Set) (State, bool) {
	planned := false
	for i := range k.Steps {
		if want.Has(i) && s.Marks[i] == Absent {
			s.Marks[i], planned = Intended, true
		}
	}
	return s, planned
}

func (k *Kind) settle(s State) (State, []Effect) {
	if s.settled {
		return s, nil
	}
	if s.Goal == 0 {
		s.settled, s.suspects, s.missing = true, 0, 0
		return s, []Effect{{Kind: Forget}, {Kind: Settle, Level: s.Goal, Err: s.failure}}
	}
	if s.dirty || s.ungoaled {
		s.op = Saving
		return s, []Effect{{Kind: Save}}
	}
	s.settled, s.rising = true, false
	effects := []Effect{{Kind: Settle, Level: s.Goal, Err: s.failure}}
	if s.fall == nil {
		return s, effects
	}
	ev := *s.fall
	s.fall = nil
	s, more := k.lower(s, ev)
	return s, append(effects, more...)
}

func highest(s Set) int {
	for i := MaxSteps - 1; i >= 0; i-- {
		if s.Has(i) {
			return i
		}
	}
	return -1
}
