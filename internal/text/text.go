// Package text makes strings of foreign origin safe to show: names that the kernel keeps as bytes,
// output of other programs, what images and plugins call themselves. Protobuf and JSON accept valid
// UTF-8 only, so one such string would otherwise fail a whole reply.
package text

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Ellipsis ends a text that was cut.
const Ellipsis = "…"

// Clean returns valid UTF-8: each byte that is not part of a character becomes \xNN, so that
// different values stay different. Valid text is returned as it is.
func Clean(value string) string {
	if utf8.ValidString(value) {
		return value
	}
	var clean strings.Builder
	for i := 0; i < len(value); {
		r, size := utf8.DecodeRuneInString(value[i:])
		if r == utf8.RuneError && size == 1 {
			fmt.Fprintf(&clean, `\x%02x`, value[i])
		} else {
			clean.WriteString(value[i : i+size])
		}
		i += size
	}
	return clean.String()
}

// Line is [Clean] for what is shown in one line: control characters become \xNN too.
func Line(value string) string {
	value = Clean(value)
	if !strings.ContainsFunc(value, isControl) {
		return value
	}
	var line strings.Builder
	for _, r := range value {
		if isControl(r) {
			fmt.Fprintf(&line, `\x%02x`, r)
		} else {
			line.WriteRune(r)
		}
	}
	return line.String()
}

func isControl(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }

// Cut is [Clean] with at most limit bytes of the value; an ellipsis follows if there was more.
func Cut(value string, limit int) string {
	if len(value) <= limit {
		return Clean(value)
	}
	return Clean(Head(value, limit)) + Ellipsis
}

// Head returns at most limit bytes of a text and does not cut a character.
func Head(value string, limit int) string {
	if len(value) <= limit {
		return value
	}
	for i := 0; i < utf8.UTFMax && limit > 0 && !utf8.RuneStart(value[limit]); i++ {
		limit--
	}
	return value[:limit]
}
