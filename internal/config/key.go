package config

import (
	"maps"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// maxTypos is how far a key may be from a known one to be taken for it.
const maxTypos = 3

// lines maps a dotted key to the line on which it is first written.
type lines map[string]int

// of returns the line of a key, or of the innermost table around it that is
// written in the file; 0 if there is none.
func (l lines) of(key string) int {
	for key != "" {
		if line, ok := l[key]; ok {
			return line
		}
		cut := strings.LastIndexByte(key, '.')
		if cut < 0 {
			return 0
		}
		key = key[:cut]
	}
	return 0
}

// keyLines finds where each key of a valid TOML document is written.
func keyLines(data []byte) lines {
	found := lines{}
	var p unstable.Parser
	p.Reset(data)
	table := ""
	for p.NextExpression() {
		expr := p.Expression()
		switch expr.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = found.note(&p, "", expr.Key())
		case unstable.KeyValue:
			found.pair(&p, table, expr)
		}
	}
	return found
}

// pair notes a key and, if its value is an inline table, those within it.
func (l lines) pair(p *unstable.Parser, table string, node *unstable.Node) {
	key := l.note(p, table, node.Key())
	if value := node.Value(); value.Kind == unstable.InlineTable {
		for it := value.Children(); it.Next(); {
			l.pair(p, key, it.Node())
		}
	}
}

// note records every prefix of a dotted key and returns the whole.
func (l lines) note(p *unstable.Parser, table string, parts unstable.Iterator) string {
	key := table
	for parts.Next() {
		part := parts.Node()
		key = joinKey(key, string(part.Data))
		if _, ok := l[key]; !ok {
			l[key] = p.Shape(part.Raw).Start.Line
		}
	}
	return key
}

// joinKey appends parts to a dotted key, quoted where TOML wants it.
func joinKey(key string, parts ...string) string {
	for _, part := range parts {
		if key != "" {
			key += "."
		}
		key += quoteKey(part)
	}
	return key
}

func quoteKey(part string) string {
	if bareKey.MatchString(part) {
		return part
	}
	return quote(part)
}

// kindOf says what a value is in the words of TOML, both for values that were
// parsed and for pointers to where they are stored.
func kindOf(value any) string {
	switch v := value.(type) {
	case string, *string:
		return "a string"
	case int64, *int:
		return "a whole number"
	case float64:
		return "a fraction"
	case bool, *bool:
		return "a boolean"
	case map[string]any:
		return "a table"
	case *[]string:
		return "an array of strings"
	case *map[string]string:
		return "a table of strings"
	case []any:
		if _, ok := stringList(v); ok {
			return "an array of strings"
		}
		return "an array with something else than strings"
	}
	return "a date or time"
}

// sectionOf says where else a key exists, nil if nowhere or in many places.
func sectionOf(key string) *string {
	var at []string
	for _, s := range sections(Default()) {
		if s.name == key {
			at = append(at, "at the top level, as [table]")
		}
		for _, set := range s.settings {
			switch {
			case set.key != key:
			case s.name == "":
				at = append(at, "above the first [table]")
			default:
				at = append(at, "in ["+s.name+"]")
			}
		}
	}
	if len(at) != 1 {
		return nil
	}
	return &at[0]
}

// suggest returns "; did you mean NAME?" if a name is close to what was written.
func suggest(written string, names []string) string {
	best, least := "", maxTypos+1
	for _, name := range names {
		if d := distance(written, name); d < least && d < len(name)/2+1 {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// distance is the number of single-letter edits between two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			above := row[j+1]
			row[j+1] = min(above, row[j]) + 1
			if a[i] == b[j] {
				row[j+1] = min(row[j+1], diagonal)
			} else {
				row[j+1] = min(row[j+1], diagonal+1)
			}
			diagonal = above
		}
	}
	return row[len(b)]
}

func list(names []string) string {
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}

// trimTOML takes the library's name out of its messages.
func trimTOML(text string) string {
	return strings.TrimPrefix(text, "toml: ")
}
