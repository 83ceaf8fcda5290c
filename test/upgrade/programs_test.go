package upgrade

import (
	"errors"
	"strings"
	"testing"

	"github.com/berth-runtime/berth/test/command"
)

// TestNoHistory: a repository without the last release is named as the reason, which `make test` shows.
func TestNoHistory(t *testing.T) {
	dir := t.TempDir()
	if _, err := command.Run(t.Context(), dir, "git", "init", "-q"); err != nil {
		t.Fatal(err)
	}
	_, err := resolve(t.Context(), dir)
	if !errors.Is(err, errNoHistory) || !strings.Contains(err.Error(), dir+" has neither the tag "+lastTag+" nor the commit "+lastCommit) {
		t.Errorf("resolve: %v, want an errNoHistory with tag and commit", err)
	}
}
