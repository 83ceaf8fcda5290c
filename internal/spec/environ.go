package spec

import "strings"

// environ is a list of variables with an index, so that setting one takes the same time however many
// there are.
type environ struct {
	entries []string
	at      map[string]int // index of a variable, by name
}

// newEnviron takes a list that may name a variable twice: the first one counts.
func newEnviron(entries []string) *environ {
	e := &environ{entries: entries, at: make(map[string]int, len(entries))}
	for i, entry := range entries {
		if name := nameOf(entry); !e.has(name) {
			e.at[name] = i
		}
	}
	return e
}

func nameOf(entry string) string {
	name, _, _ := strings.Cut(entry, "=")
	return name
}

func (e *environ) has(name string) bool {
	_, ok := e.at[name]
	return ok
}

// set replaces a variable in its place, or appends it.
func (e *environ) set(entry string) {
	name := nameOf(entry)
	if i, ok := e.at[name]; ok {
		e.entries[i] = entry
		return
	}
	e.at[name] = len(e.entries)
	e.entries = append(e.entries, entry)
}

// names returns the names of those entries that are in force. Their values may be secrets.
func (e *environ) names(entries []string) []string {
	var names []string
	for _, entry := range entries {
		if name := nameOf(entry); e.has(name) && e.entries[e.at[name]] == entry {
			names = append(names, name)
		}
	}
	return names
}
