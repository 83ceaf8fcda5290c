package layers

import (
	"regexp"
	"strings"
	"testing"
)

// privateWords are words with a standard term in the field, by their replacement.
var privateWords = map[string]string{
	"nobody": "a noun: no client, no process", "somebody": "a noun: a client, another process", "whoever": "a noun: the caller",
	"census": "leak check", "shelf": "fd store", "errand": "pending operation", "patience": "stall timeout",
	"stranger": "stale session, orphaned process", "upkeep": "maintenance, garbage collection", "doomed": "removing",
	"ledger": "lease store", "stand-in": "placeholder", "trial": "probe container, handler probe",
	"anew": "again, recreate", "written down": "recorded, checkpointed", "told": "notified, published",
}

// allowedWords are the places that keep a word, with the reason.
var allowedWords = []struct{ file, word, why string }{
	{"test/layers/words_test.go", "", "the list of words"},
	{"test/conformance/images.go", "nobody", "the user of /etc/passwd"},
	{"test/imagefactory/busybox.go", "nobody", "the user of /etc/passwd"},
	{"internal/shim/journal/schema_test.go", "nobody", "a record of an earlier version"},
	{"docs/architecture.md", "trials", "a directory's name"},
	{"docs/handlers.md", "trials", "a directory's name"},
	{"internal/network/network.go", "stand-in", "a directory's name"},
	{"test/integration/probe_container_test.go", "trials", "a directory's name"},
	{"internal/shim/calls.go", "nobody", "the user"},
	{"cmd/berthd/handlers.go", "trials", "a directory's name"},
}

var word = regexp.MustCompile(`\b([Nn]obody|[Ss]omebody|[Ww]hoever|census|shelf|errand|patience|stranger|upkeep|doomed|ledger|stand-in|trials?|anew|written down|told)\b`)

// TestWords: texts use the terms of the field. Markdown is checked whole but for code, Go code whole.
func TestWords(t *testing.T) {
	for _, page := range files(t, ".md") {
		for _, found := range privateWordsIn(page, codeFence.ReplaceAllString(read(t, page), "")) {
			t.Errorf("%s says %q: use %s", page, found, privateWords[strings.TrimSuffix(strings.ToLower(found), "s")])
		}
	}
	for _, file := range files(t, ".go") {
		for _, found := range privateWordsIn(file, read(t, file)) {
			t.Errorf("%s says %q: use %s", file, found, privateWords[strings.TrimSuffix(strings.ToLower(found), "s")])
		}
	}
}

// privateWordsIn returns the private words of a text without those that are allowed in the file.
func privateWordsIn(file, text string) []string {
	var all []string
	for _, found := range word.FindAllString(text, -1) {
		allowed := false
		for _, a := range allowedWords {
			allowed = allowed || a.file == file && (a.word == "" || strings.EqualFold(a.word, found))
		}
		if !allowed {
			all = append(all, found)
		}
	}
	return all
}
