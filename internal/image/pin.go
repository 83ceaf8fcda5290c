package image

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

// pins are the names of images that kubelet must not collect.
type pins struct {
	names    map[string]bool
	patterns []*regexp.Regexp
}

// newPins reads references and patterns, in which * stands for any characters. A pattern is compared
// with the full name of an image.
func newPins(refs []string) (pins, error) {
	p := pins{names: map[string]bool{}}
	for _, ref := range refs {
		if strings.Contains(ref, "*") {
			if len(ref) > maxReference {
				return p, fmt.Errorf("pattern is longer than %d bytes: %w", maxReference, errdefs.ErrInvalidArgument)
			}
			pattern := strings.ReplaceAll(regexp.QuoteMeta(ref), `\*`, ".*")
			p.patterns = append(p.patterns, regexp.MustCompile("^"+pattern+"$"))
			continue
		}
		named, err := parseReference(ref)
		if err != nil {
			return p, err
		}
		p.names[named.String()] = true
	}
	return p, nil
}

func (p pins) match(name string) bool {
	for _, pattern := range p.patterns {
		if pattern.MatchString(name) {
			return true
		}
	}
	return p.names[name]
}
