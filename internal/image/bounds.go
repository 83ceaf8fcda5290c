package image

import (
	"cmp"
	"maps"
	"slices"
)

// maxAnnotationBytes bounds the annotations of a manifest that are shown, key and value together.
const maxAnnotationBytes = 64 << 10

// boundedAnnotations keeps the smallest annotations of a manifest, as many as have room, so that a list
// of images has a bounded size. It tells how many it left out.
func boundedAnnotations(all map[string]string) (kept map[string]string, left int) {
	size := func(key string) int { return len(key) + len(all[key]) }
	total := 0
	for key := range all {
		total += size(key)
	}
	if total <= maxAnnotationBytes {
		return all, 0
	}
	kept, total = map[string]string{}, 0
	for _, key := range slices.SortedFunc(maps.Keys(all), func(a, b string) int { return cmp.Or(cmp.Compare(size(a), size(b)), cmp.Compare(a, b)) }) {
		if total += size(key); total > maxAnnotationBytes {
			break
		}
		kept[key] = all[key]
	}
	return kept, len(all) - len(kept)
}
