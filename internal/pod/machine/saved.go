package machine

import "fmt"

// Record is a State as it is written down: by names, so that steps and levels
// may be added later without misreading old records.
type Record struct {
	// Goal is the name of a level.
	Goal string `json:"goal"`
	// Uses and the keys of Steps are names of steps.
	Uses  []string          `json:"uses"`
	Steps map[string]string `json:"steps"`
}

// Save turns a state into its written form.
func (k *Kind) Save(s State) Record {
	saved := Record{Goal: k.Levels[s.Goal].Name, Steps: map[string]string{}}
	for i, name := range k.Steps {
		if s.Uses.Has(i) {
			saved.Uses = append(saved.Uses, name)
		}
		if s.Marks[i] != Absent {
			saved.Steps[name] = s.Marks[i].String()
		}
	}
	return saved
}

// Load turns a written state back. Names that this version does not know are
// errors: what they stand for could not be undone.
func (k *Kind) Load(saved Record) (State, error) {
	var s State
	goal := -1
	for i, l := range k.Levels {
		if l.Name == saved.Goal {
			goal = i
		}
	}
	if goal < 0 {
		return s, fmt.Errorf("%s record has unknown goal %q", k.Name, saved.Goal)
	}
	s.Goal = goal
	for _, name := range saved.Uses {
		i, err := k.index(name)
		if err != nil {
			return s, err
		}
		s.Uses |= 1 << i
	}
	for name, mark := range saved.Steps {
		i, err := k.index(name)
		if err != nil {
			return s, err
		}
		switch mark {
		case Intended.String():
			s.Marks[i] = Intended
		case Done.String():
			s.Marks[i] = Done
		default:
			return s, fmt.Errorf("%s record has unknown mark %q at step %s", k.Name, mark, name)
		}
	}
	return s, nil
}

func (k *Kind) index(step string) (int, error) {
	for i, name := range k.Steps {
		if name == step {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%s record has unknown step %q", k.Name, step)
}

// Complete reports whether every step that the goal wants is done.
func (k *Kind) Complete(s State) bool {
	want := k.want(s)
	for i := range k.Steps {
		if want.Has(i) && s.Marks[i] != Done {
			return false
		}
	}
	return true
}

// Adapt gives a step to a state that was saved before there was such a step. It
// counts as done where the goal wants it.
func (k *Kind) Adapt(s State, step int) State {
	if s.Uses.Has(step) {
		return s
	}
	s.Uses |= Steps(step)
	if k.Levels[s.Goal].Steps.Has(step) {
		s.Marks[step] = Done
	}
	return s
}

// Whole is the state of an object of which every step may exist and whose
// record is lost: it is left alone until somebody lowers it.
func (k *Kind) Whole(uses Set) State {
	s := State{Goal: len(k.Levels) - 1, Uses: uses, settled: true}
	for i := range k.Steps {
		if uses.Has(i) {
			s.Marks[i] = Done
		}
	}
	return s
}
