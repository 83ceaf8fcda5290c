package image

import (
	"fmt"
	"strings"
	"testing"
)

// TestAnnotationsAreBounded: of a manifest with megabytes of annotations the small ones are shown, always
// the same.
func TestAnnotationsAreBounded(t *testing.T) {
	all := map[string]string{"org.opencontainers.image.title": "app", "large": strings.Repeat("x", 4<<20)}
	kept, left := boundedAnnotations(all)
	if len(kept) != 1 || kept["org.opencontainers.image.title"] != "app" || left != 1 {
		t.Errorf("kept %d, left %d", len(kept), left)
	}
	many := map[string]string{}
	for i := range 10_000 {
		many[fmt.Sprintf("key-%05d", i)] = "0123456789"
	}
	kept, left = boundedAnnotations(many)
	if _, first := kept["key-00000"]; !first || len(kept)+left != len(many) || len(kept)*19 > maxAnnotationBytes || left == 0 {
		t.Errorf("kept %d, left %d, the first one %t", len(kept), left, first)
	}
	if kept, left = boundedAnnotations(map[string]string{"a": "b"}); len(kept) != 1 || left != 0 {
		t.Errorf("ordinary annotations: kept %v, left %d", kept, left)
	}
}
