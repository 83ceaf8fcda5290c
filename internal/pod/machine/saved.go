package machine

import "fmt"

// Record is a State as it is stored: by names, so that steps and levels can be added later without
// misreading old records.
type Record struct {
	// Goal is the name of a level.
	Goal string `json:"goal"`
	// Uses and the keys of Steps are names of steps.
	Uses  []string          `json:"uses"`
	Steps map[string]string `json:"steps"`
}

// Save turns a state into its stored form.
func (k *Kind) Save(s State) Record {
	saved := Record{Goal: k.Levels[s.Goal].Name, Steps: map[string]string{}}
	for i, step := range k.Steps {
		if s.Uses.Has(i) {
			saved.Uses = append(saved.Uses, step.Name)
		}
		if s.Marks[i] != Absent {
			saved.Steps[step.Name] = s.Marks[i].String()
		}
	}
	return saved
}

// Load turns a recorded state back. A name that this version does not know is an error: its step could
// not be undone. Steps that are newer than the record count as done where the goal has them.
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
	for i, step := range k.Steps {
		if step.Late && !s.Uses.Has(i) {
			s = k.adapt(s, i)
		}
	}
	return s, nil
}

func (k *Kind) index(step string) (int, error) {
	for i := range k.Steps {
		if k.Steps[i].Name == step {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%s record has unknown step %q", k.Name, step)
}

// Complete reports whether every step that the goal wants is done.
func (k *Kind) Complete(s State) bool {
	want := k.Want(s)
	for i := range k.Steps {
		if want.Has(i) && s.Marks[i] != Done {
			return false
		}
	}
	return true
}

// adapt gives a step to a state that was saved before there was such a step. It counts as done where
// the goal wants it.
func (k *Kind) adapt(s State, step int) State {
	s.Uses |= 1 << step
	if k.Levels[s.Goal].steps.Has(step) {
		s.Marks[step] = Done
	}
	return s
}

// Whole is the state of an object whose record is lost: every step may exist. It is left alone until a
// request lowers it.
func (k *Kind) Whole() State {
	s := State{Goal: len(k.Levels) - 1, Uses: k.All(), settled: true}
	for i := range k.Steps {
		s.Marks[i] = Done
	}
	return s
}
