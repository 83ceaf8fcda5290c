package config

import (
	"fmt"
	"strings"
)

// Reference returns a table of every key in Markdown, for docs/configuration.md.
func Reference() string {
	var b strings.Builder
	named := false // one handler stands for all
	for _, s := range Default().ordered() {
		if strings.HasPrefix(s.name, handlersTable+".") {
			if named {
				continue
			}
			named = true
			s.name = handlersTable + ".NAME"
			s.doc = "One table per handler. NAME is what a RuntimeClass names as its handler. crun and runc exist without being\n" +
				"written; what is left out of their tables keeps the defaults."
		}
		s.reference(&b)
	}
	return b.String()
}

func (s section) reference(b *strings.Builder) {
	title := "`[" + s.name + "]`"
	if s.name == "" {
		title = "Top level"
	}
	fmt.Fprintf(b, "### %s\n\n", title)
	if s.doc != "" {
		fmt.Fprintf(b, "%s\n\n", s.doc)
	}
	b.WriteString("| key | type | default | meaning |\n|---|---|---|---|\n")
	for _, set := range s.settings {
		value := "`" + literal(set.value) + "`"
		if strings.HasPrefix(s.name, handlersTable) && set.key == "path" {
			value = "`NAME` for crun and runc"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", set.key, strings.TrimPrefix(strings.TrimPrefix(kindOf(set.value), "a "), "an "),
			value, strings.ReplaceAll(set.doc, "\n", " "))
	}
	b.WriteByte('\n')
}
