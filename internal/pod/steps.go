package pod

import (
	"context"
	"time"

	"github.com/berth-runtime/berth/internal/pod/machine"
)

// stepDeadline bounds every step whose entry does not say otherwise.
const stepDeadline = 2 * time.Minute

// step is one entry of a step table: all there is to know about one step of objects of type T. To add
// a step to a kind, add an entry.
type step[T any] struct {
	// name is the step's name in records, errors and logs. It never changes: records contain it.
	name string
	// from is the lowest level that has the step.
	from int
	// uses reports whether an object has the step at all; nil: every object has it.
	uses func(T) bool
	// do performs the step and undo reverts it. undo succeeds for a step of which nothing or only a
	// part exists.
	do, undo func(T, context.Context) error
	// probe looks whether the step is still there after a restart of the daemon, and changes nothing.
	// An error is the reason why it is not. Nil: it cannot get lost, or goes with another step.
	probe func(T) error
	// adopt records a step that a probe has found and that the record may not contain, because the
	// daemon was killed in between. Nil: a step that is not recorded as done is undone.
	adopt func(T)
	// again: a step that a probe does not find is done again.
	again bool
	// late: versions before the step have written records.
	late bool
	// deadline bounds do and undo each; nil: stepDeadline.
	deadline func(T) time.Duration
}

// stepTable is the step table of a kind, and the kind that is derived from it.
type stepTable[T any] struct {
	*machine.Kind
	steps []step[T]
}

// newStepTable makes the kind of a step table. It panics if the tables are inconsistent: see
// [machine.NewKind].
func newStepTable[T any](name string, levels []machine.Level, steps []step[T]) stepTable[T] {
	specs := make([]machine.Step, len(steps))
	for i, s := range steps {
		specs[i] = machine.Step{Name: s.name, From: s.from, Adopt: s.adopt != nil, Again: s.again, Late: s.late}
	}
	return stepTable[T]{machine.NewKind(name, levels, specs), steps}
}

// usedBy returns the steps that an object has.
func (t stepTable[T]) usedBy(object T) machine.Set {
	var set machine.Set
	for i, s := range t.steps {
		if s.uses == nil || s.uses(object) {
			set |= 1 << i
		}
	}
	return set
}

func (t stepTable[T]) do(ctx context.Context, object T, i int) error {
	return t.steps[i].do(object, ctx)
}

func (t stepTable[T]) undo(ctx context.Context, object T, i int) error {
	return t.steps[i].undo(object, ctx)
}

// probe looks for a step, and has it recorded if it is there.
func (t stepTable[T]) probe(object T, i int) error {
	s := t.steps[i]
	if s.probe == nil {
		return nil
	}
	err := s.probe(object)
	if err == nil && s.adopt != nil {
		s.adopt(object)
	}
	return err
}

func (t stepTable[T]) deadline(object T, i int) time.Duration {
	if s := t.steps[i]; s.deadline != nil {
		return s.deadline(object)
	}
	return stepDeadline
}
