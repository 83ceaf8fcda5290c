package machine

import "testing"

// TestAdapt: a state from before there was a step gets it where its goal wants
// it, and no second time.
func TestAdapt(t *testing.T) {
	k := &Kind{Name: "thing", Steps: []string{"old", "new"}, Levels: []LevelSpec{
		{Name: "gone"}, {Name: "half", Steps: Steps(0)}, {Name: "whole", Steps: Steps(0, 1)},
	}}
	for _, test := range []struct {
		name    string
		before  Record
		uses    Set
		mark    Mark
		comment string
	}{
		{"wanted", Record{Goal: "whole", Uses: []string{"old"}, Steps: map[string]string{"old": "done"}}, Steps(0, 1), Done, "it is taken for done"},
		{"unwanted", Record{Goal: "half", Uses: []string{"old"}, Steps: map[string]string{"old": "done"}}, Steps(0, 1), Absent, "there is nothing to undo"},
		{"known", Record{Goal: "whole", Uses: []string{"old", "new"}, Steps: map[string]string{"new": "intended"}}, Steps(0, 1), Intended, "it stays as it is"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := k.Load(test.before)
			if err != nil {
				t.Fatal(err)
			}
			if s = k.Adapt(s, 1); s.Uses != test.uses || s.Marks[1] != test.mark {
				t.Errorf("%s: uses %b and mark %s, want %b and %s", test.comment, s.Uses, s.Marks[1], test.uses, test.mark)
			}
		})
	}
}
