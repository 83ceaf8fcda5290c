package pod

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/pod/store"
)

// podUIDLabel is the label by which kubelet asks for the objects of one pod,
// after every change of it; see PLEGOnDemandRelist.
const podUIDLabel = "io.kubernetes.pod.uid"

// labelled is what an index can hold.
type labelled interface {
	comparable
	objectID() string
	objectLabels() map[string]string
	// listedSize does not change.
	listedSize() int
}

// index finds objects by ID, unambiguous prefix and pod UID. Its owner guards it.
type index[T labelled] struct {
	byID  map[string]T
	byUID map[string]map[string]T
	// listed is what the objects take of a list.
	listed int
}

func newIndex[T labelled]() index[T] {
	return index[T]{byID: map[string]T{}, byUID: map[string]map[string]T{}}
}

func (x *index[T]) add(o T) {
	id, uid := o.objectID(), o.objectLabels()[podUIDLabel]
	x.byID[id] = o
	if x.byUID[uid] == nil {
		x.byUID[uid] = map[string]T{}
	}
	x.byUID[uid][id] = o
	x.listed += o.listedSize()
}

func (x *index[T]) remove(o T) {
	id, uid := o.objectID(), o.objectLabels()[podUIDLabel]
	if _, ok := x.byID[id]; ok {
		x.listed -= o.listedSize()
	}
	delete(x.byID, id)
	delete(x.byUID[uid], id)
	if len(x.byUID[uid]) == 0 {
		delete(x.byUID, uid)
	}
}

// find resolves an ID or an unambiguous prefix of one.
func (x index[T]) find(what, id string) (T, error) {
	var none T
	if o, ok := x.byID[id]; ok {
		return o, nil
	}
	if id == "" {
		return none, fmt.Errorf("%s ID is empty: %w", what, errdefs.ErrInvalidArgument)
	}
	if len(id) >= store.IDLength {
		return none, fmt.Errorf("%s %q: %w", what, id, errdefs.ErrNotFound)
	}
	var found []string
	for full := range x.byID {
		if strings.HasPrefix(full, id) {
			found = append(found, full)
		}
	}
	switch len(found) {
	case 0:
		return none, fmt.Errorf("%s %q: %w", what, id, errdefs.ErrNotFound)
	case 1:
		return x.byID[found[0]], nil
	}
	slices.Sort(found)
	return none, fmt.Errorf("%s ID %q is ambiguous, it begins %d IDs, among them %.13s and %.13s: %w",
		what, id, len(found), found[0], found[1], errdefs.ErrInvalidArgument)
}

// all returns the objects that may match the labels: those of one pod if the
// labels name one, else every object. The caller still has to match.
func (x index[T]) all(labels map[string]string) []T {
	if uid, ok := labels[podUIDLabel]; ok {
		return slices.Collect(maps.Values(x.byUID[uid]))
	}
	return slices.Collect(maps.Values(x.byID))
}

// matchLabels reports whether every wanted label is there with its value.
func matchLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// findContainer resolves an ID or an unambiguous prefix.
func (e *Engine) findContainer(id string) (*container, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.containers.find("container", id)
}

// findSandbox resolves an ID or an unambiguous prefix.
func (e *Engine) findSandbox(id string) (*sandbox, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.sandboxes.find("sandbox", id)
}
