package support

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// list is what support.txt says.
type list struct {
	// since is the version of what names no other.
	since string
	rules []*rule
}

// rule is a line about one call, one field ("Message.field"), or several with a pattern.
type rule struct {
	line    int
	pattern string
	// answer is yes, partly or no.
	answer, since string
	tests         []string
	remark        string
	used          bool
}

const firstVersion = "first version "

var testName = regexp.MustCompile(`^Test\w+$`)

// parse reads a list: lines of "what | answer [since VERSION] | tests | remark".
func parse(text string) (*list, error) {
	l := &list{}
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if version, ok := strings.CutPrefix(line, firstVersion); ok {
			l.since = version
			continue
		}
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		r, err := parseRule(line, l.since)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		r.line = number
		l.rules = append(l.rules, r)
	}
	return l, nil
}

func parseRule(line, since string) (*rule, error) {
	parts := strings.Split(line, "|")
	if len(parts) < 2 || len(parts) > 4 {
		return nil, fmt.Errorf("want: what | answer | tests | remark; there are %d parts", len(parts))
	}
	parts = append(parts, "", "")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	r := &rule{pattern: parts[0], since: since, remark: parts[3]}
	if _, err := path.Match(r.pattern, ""); err != nil {
		return nil, fmt.Errorf("%s: %w", r.pattern, err)
	}
	var own bool
	var version string
	if r.answer, version, own = strings.Cut(parts[1], " since "); own {
		r.since = version
	}
	for name := range strings.FieldsFuncSeq(parts[2], func(c rune) bool { return c == ',' || c == ' ' }) {
		if !testName.MatchString(name) {
			return nil, fmt.Errorf("%q is no name of a test", name)
		}
		r.tests = append(r.tests, name)
	}
	switch r.answer {
	case "yes", "partly":
		if len(r.tests) == 0 {
			return nil, fmt.Errorf("%s needs a test", r.answer)
		}
	case "no":
		if r.remark == "" {
			return nil, fmt.Errorf("no needs a reason")
		}
		r.since = ""
	default:
		return nil, fmt.Errorf("%q: want yes, partly or no", r.answer)
	}
	return r, nil
}

// find returns the rule for a call or field: the one that names it, else the first whose pattern matches.
func (l *list) find(name string) *rule {
	var found *rule
	for _, r := range l.rules {
		if r.pattern == name {
			return r
		}
		if ok, err := path.Match(r.pattern, name); found == nil && ok && err == nil {
			found = r
		}
	}
	return found
}
