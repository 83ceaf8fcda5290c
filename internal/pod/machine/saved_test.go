package machine

import "testing"

// TestLoadAddsLateSteps: a state from before there was a step gets it where its goal
// has it, and no second time.
func TestLoadAddsLateSteps(t *testing.T) {
	k := NewKind("thing", []Level{{Name: "gone"}, {Name: "half"}, {Name: "whole"}},
		[]Step{{Name: "old", From: 1}, {Name: "new", From: 2, Late: true}})
	for _, test := range []struct {
		name    string
		before  Record
		uses    Set
		mark    Mark
		comment string
	}{
		{"wanted", Record{Goal: "whole", Uses: []string{"old"}, Steps: map[string]string{"old": "done"}}, k.All(), Done, "it is taken for done"},
		{"unwanted", Record{Goal: "half", Uses: []string{"old"}, Steps: map[string]string{"old": "done"}}, k.All(), Absent, "there is nothing to undo"},
		{"known", Record{Goal: "whole", Uses: []string{"old", "new"}, Steps: map[string]string{"new": "intended"}}, k.All(), Intended, "it stays as it is"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := k.Load(test.before)
			if err != nil {
				t.Fatal(err)
			}
			if s.Uses != test.uses || s.Marks[1] != test.mark {
				t.Errorf("%s: uses %b and mark %s, want %b and %s", test.comment, s.Uses, s.Marks[1], test.uses, test.mark)
			}
		})
	}
}

// TestNewKindRefusesInconsistentTables: a kind that is too large, has a name twice or refers to a level
// that is not there fails when the program starts.
func TestNewKindRefusesInconsistentTables(t *testing.T) {
	levels := func() []Level { return []Level{{Name: "gone"}, {Name: "here"}} }
	large := make([]Step, MaxSteps+1)
	for i := range large {
		large[i] = Step{Name: string(rune('a' + i)), From: 1}
	}
	for name, k := range map[string]Kind{
		"too many steps":    {Levels: levels(), Steps: large},
		"step twice":        {Levels: levels(), Steps: []Step{{Name: "a", From: 1}, {Name: "a", From: 1}}},
		"step without name": {Levels: levels(), Steps: []Step{{From: 1}}},
		"level missing":     {Levels: levels(), Steps: []Step{{Name: "a", From: 2}}},
		"lowest level":      {Levels: levels(), Steps: []Step{{Name: "a"}}},
		"level twice":       {Levels: []Level{{Name: "gone"}, {Name: "gone"}}},
		"fallback up":       {Levels: []Level{{Name: "gone"}, {Name: "here", Fallback: 1}}},
	} {
		if err := k.derive(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	k := NewKind("full", levels(), large[:MaxSteps])
	if got := k.All(); got != 1<<MaxSteps-1 || k.Levels[1].steps != got {
		t.Errorf("a kind with the most steps has %b, and %b at its highest level", got, k.Levels[1].steps)
	}
}
