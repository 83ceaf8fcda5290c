package hook

import (
	"regexp"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// condition says for which containers a hook is. All that is set must hold; what sets nothing holds for none.
type condition struct {
	always, hasBindMounts *bool
	// annotations are patterns of a name and its value; each must match some annotation.
	annotations [][2]*regexp.Regexp
	// commands are patterns of the program; one must match.
	commands []*regexp.Regexp
}

func (c condition) holds(process *specs.Process, annotations map[string]string, hasMounts bool) bool {
	set := c.always != nil || c.hasBindMounts != nil || len(c.annotations) > 0 || len(c.commands) > 0
	if !set || c.always != nil && !*c.always || c.hasBindMounts != nil && (!*c.hasBindMounts || !hasMounts) {
		return false
	}
	for _, pair := range c.annotations {
		if !matchesAny(pair, annotations) {
			return false
		}
	}
	return len(c.commands) == 0 || c.runs(process)
}

func (c condition) runs(process *specs.Process) bool {
	if process == nil || len(process.Args) == 0 {
		return false
	}
	for _, pattern := range c.commands {
		if pattern.MatchString(process.Args[0]) {
			return true
		}
	}
	return false
}

func matchesAny(pair [2]*regexp.Regexp, annotations map[string]string) bool {
	for key, value := range annotations {
		if pair[0].MatchString(key) && pair[1].MatchString(value) {
			return true
		}
	}
	return false
}
