package machine

import "fmt"

// MaxSteps bounds the steps of one kind of object. [NewKind] refuses more.
const MaxSteps = 16

// Set is a set of step indexes.
type Set uint16

// Has reports whether step i is in the set.
func (s Set) Has(i int) bool { return s&(1<<i) != 0 }

// Kind describes one kind of object: its steps in order and its levels from the lowest, which is
// always "gone", to the highest. [NewKind] makes one.
type Kind struct {
	Name   string
	Steps  []Step
	Levels []Level
}

// Step declares one step of a kind.
type Step struct {
	Name string
	// From is the lowest level that has the step. Every level above has it, too.
	From int
	// Adopt: the step may have succeeded although that was not recorded. After a restart it is probed
	// and kept instead of undone.
	Adopt bool
	// Again: a step that a probe finds missing is done again. Otherwise the object falls to a level
	// without the step.
	Again bool
	// Late: versions without the step have written records. In these it counts as done where the goal
	// has it.
	Late bool
}

// Level is a level of a kind.
type Level struct {
	Name string
	// Fallback is the level to go to when this one cannot be reached.
	Fallback int
	// Lost is the level to go to when this one was reached and a step of it is
	// found to be gone, as after a reboot: a lower one.
	Lost int

	steps Set // those which are done at this level
}

// NewKind makes a kind from its tables. It panics if these are inconsistent: more than [MaxSteps]
// steps, a name that is empty or used twice, or a step or level that refers to a level which is not
// there or not lower.
func NewKind(name string, levels []Level, steps []Step) *Kind {
	k := &Kind{Name: name, Levels: levels, Steps: steps}
	if err := k.derive(); err != nil {
		panic(fmt.Sprintf("machine: kind %s: %v", name, err))
	}
	return k
}

// derive checks the tables and gives each level its steps.
func (k *Kind) derive() error {
	if len(k.Steps) > MaxSteps {
		return fmt.Errorf("%d steps, the most is %d", len(k.Steps), MaxSteps)
	}
	names := map[string]bool{}
	for i, level := range k.Levels {
		if level.Name == "" || names[level.Name] {
			return fmt.Errorf("level %d has the name %q, which is empty or used twice", i, level.Name)
		}
		if i > 0 && (level.Fallback < 0 || level.Fallback >= i || level.Lost < 0 || level.Lost >= i) {
			return fmt.Errorf("level %s falls back to level %d or %d, which is not lower", level.Name, level.Fallback, level.Lost)
		}
		names[level.Name] = true
	}
	names = map[string]bool{}
	for i, step := range k.Steps {
		if step.Name == "" || names[step.Name] {
			return fmt.Errorf("step %d has the name %q, which is empty or used twice", i, step.Name)
		}
		if step.From < 1 || step.From >= len(k.Levels) {
			return fmt.Errorf("step %s begins at level %d, which is not there or is the lowest", step.Name, step.From)
		}
		names[step.Name] = true
		for l := step.From; l < len(k.Levels); l++ {
			k.Levels[l].steps |= 1 << i
		}
	}
	return nil
}

// Set returns the steps with the names. It panics if the kind has no such step.
func (k *Kind) Set(names ...string) Set {
	var s Set
	for _, name := range names {
		i, err := k.index(name)
		if err != nil {
			panic("machine: " + err.Error())
		}
		s |= 1 << i
	}
	return s
}

// All returns every step of the kind.
func (k *Kind) All() Set { return 1<<len(k.Steps) - 1 }

// Present reports whether something of the step with the name may exist. It panics if the kind has
// no such step.
func (k *Kind) Present(s State, name string) bool { return k.present(s)&k.Set(name) != 0 }
