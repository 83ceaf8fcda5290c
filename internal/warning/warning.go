// Package warning holds warnings: parts of a request that Berth accepts although this host or this version
// cannot fully give them, because other runtimes accept them too. A request that would get more rights than it asks
// for is refused instead.
package warning

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

const (
	// maxText bounds each text of a warning: values come from requests and images.
	maxText = 256
	// maxList bounds the warnings of one pod or container. The last one counts those left out.
	maxList = 32
)

// Warning is one unsupported part of a request.
type Warning struct {
	// Field is the name of the field in the request, as in errors: "mounts[0].propagation".
	Field string `json:"field"`
	// Value is what was asked for. It must not be a secret.
	Value string `json:"value,omitempty"`
	// Reason says what happened instead and why.
	Reason string `json:"reason"`
}

// New makes a warning. Its texts are cut to a bounded length, and have no control characters.
func New(field string, value any, reason string) Warning {
	return Warning{Field: clean(field), Value: clean(fmt.Sprint(value)), Reason: clean(reason)}
}

// String is the warning as a log line shows it.
func (w Warning) String() string { return fmt.Sprintf("%s %q %s", w.Field, w.Value, w.Reason) }

// List is the warnings of one pod or container, each once.
type List []Warning

// Add appends a warning unless the list has it.
func (l *List) Add(field string, value any, reason string) { l.Append(New(field, value, reason)) }

// Append adds warnings that the list does not have, and returns those that it added. What exceeds the bound of the list
// is dropped, and its last element says so. A nil list drops all.
func (l *List) Append(more ...Warning) List {
	var added List
	if l == nil {
		return nil
	}
	for _, w := range more {
		switch {
		case l.has(w):
		case len(*l) < maxList-1:
			*l, added = append(*l, w), append(added, w)
		case len(*l) == maxList-1:
			*l = append(*l, New("warnings", "", fmt.Sprintf("more than %d warnings: the others are left out", maxList-1)))
		}
	}
	return added
}

func (l *List) has(w Warning) bool {
	return slices.Contains(*l, w)
}

func clean(text string) string {
	if len(text) > maxText {
		text = text[:maxText] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}

// index is what tells elements of a list in a field's name apart.
var index = regexp.MustCompile(`\[[^]]*\]`)

// open are fields whose elements have names that the request chooses.
var open = []string{"linux.sysctls", "linux.resources.unified", "annotations"}

// Label is the field as the label of a metric: without indexes and names that requests choose, so that the set of labels is
// that of the code.
func (w Warning) Label() string {
	label := index.ReplaceAllString(w.Field, "")
	for _, prefix := range open {
		if strings.HasPrefix(label, prefix+".") {
			return prefix
		}
	}
	return label
}
