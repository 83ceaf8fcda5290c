package text

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	for value, want := range map[string]string{
		"eth0":              "eth0",
		"größe\n":           "größe\n",
		"\xff\xfe":          `\xff\xfe`,
		"a\xc3":             `a\xc3`,
		"\xed\xa0\x80":      `\xed\xa0\x80`, // a surrogate is no character
		"replaced \uFFFD ":  "replaced \uFFFD ",
		"\xf0\x9f\x98\x80x": "😀x",
	} {
		if got := Clean(value); got != want {
			t.Errorf("Clean(%q) is %q, want %q", value, got, want)
		}
	}
	if got := Line("a\x1b[2J\nb\u0085\xff"); got != `a\x1b[2J\x0ab\x85\xff` {
		t.Errorf("Line gives %q", got)
	}
}

// TestCutKeepsCharacters: a text is cut between two characters and stays within its limit.
func TestCutKeepsCharacters(t *testing.T) {
	value := strings.Repeat("ä€😀", 10)
	for limit := range len(value) + 2 {
		got := strings.TrimSuffix(Cut(value, limit), Ellipsis)
		if len(got) > limit || len(got) < min(limit, len(value))-utf8.UTFMax || !strings.HasPrefix(value, got) {
			t.Errorf("limit %d gives %d bytes: %q", limit, len(got), got)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("eth\xff0", 3)
	f.Fuzz(func(t *testing.T, value string, limit int) {
		for _, got := range []string{Clean(value), Line(value), Cut(value, max(limit, 0))} {
			if !utf8.ValidString(got) {
				t.Errorf("%q gives %q", value, got)
			}
		}
	})
}
