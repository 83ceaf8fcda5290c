package config

import (
	"fmt"
	"strconv"
	"strings"
)

// documentHead opens the documented default.
const documentHead = `# Configuration of berthd. Every key is optional; what is written here is the default.
# Check a file with: berth config validate --config FILE
`

// handlersHead stands before the handlers in the documented default.
const handlersHead = `# One table [runtime.handlers.NAME] per handler; NAME is what a RuntimeClass names as its handler. crun and runc exist
# without being written; what is left out of their tables keeps the values below.
`

// Document returns the default configuration as TOML with a comment on every
// key. It is a valid file which changes nothing.
func Document() string {
	return documentHead + "\n" + Default().render(true)
}

// TOML returns the configuration as a file that Load reads back to the same.
func (c *Config) TOML() string {
	return c.render(false)
}

func (c *Config) render(comments bool) string {
	var b strings.Builder
	explained := false // the keys of a handler are explained once
	for i, s := range c.ordered() {
		handler := strings.HasPrefix(s.name, handlersTable+".")
		if i > 0 {
			b.WriteByte('\n')
		}
		if comments && handler && !explained {
			b.WriteString(handlersHead)
		}
		s.render(&b, comments && !(handler && explained))
		explained = explained || handler
	}
	return b.String()
}

// ordered returns every table with the handlers directly behind [runtime].
func (c *Config) ordered() []section {
	var head, handlers, tail []section
	into := &head
	for _, s := range c.allSections() {
		if strings.HasPrefix(s.name, handlersTable+".") {
			handlers = append(handlers, s)
			continue
		}
		*into = append(*into, s)
		if s.name == "runtime" {
			into = &tail
		}
	}
	return append(append(head, handlers...), tail...)
}

func (s section) render(b *strings.Builder, comments bool) {
	if comments && s.doc != "" {
		comment(b, s.doc)
	}
	if s.name != "" {
		fmt.Fprintf(b, "[%s]\n", s.name)
	}
	for i, set := range s.settings {
		if comments {
			if i > 0 {
				b.WriteByte('\n')
			}
			comment(b, set.doc)
		}
		fmt.Fprintf(b, "%s = %s\n", set.key, literal(set.value))
	}
}

func comment(b *strings.Builder, text string) {
	for line := range strings.SplitSeq(text, "\n") {
		b.WriteString("# " + line + "\n")
	}
}

// literal writes the value of a setting as TOML.
func literal(value any) string {
	switch v := value.(type) {
	case *string:
		return quote(*v)
	case *int:
		return strconv.Itoa(*v)
	case *bool:
		return strconv.FormatBool(*v)
	case *[]string:
		quoted := make([]string, len(*v))
		for i, s := range *v {
			quoted[i] = quote(s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case *map[string]string:
		var pairs []string
		for _, key := range sortedKeys(*v) {
			pairs = append(pairs, quoteKey(key)+" = "+quote((*v)[key]))
		}
		if len(pairs) == 0 {
			return "{}"
		}
		return "{ " + strings.Join(pairs, ", ") + " }"
	}
	panic(fmt.Sprintf("config: setting of type %T has no TOML form", value))
}

// quote writes a TOML basic string. It differs from Go's in the escapes that
// TOML does not have.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
