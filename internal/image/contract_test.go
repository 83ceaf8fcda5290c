package image_test

import (
	"testing"

	"github.com/berth-runtime/berth/internal/pod/podtest"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// TestContract: the store does what the pod engine relies on.
func TestContract(t *testing.T) {
	privilege.Root(t)
	podtest.RunImages(t, func(t *testing.T) podtest.Images {
		f := newFixture(t)
		ref, _ := f.push("contract:1", hello())
		f.pull(ref)
		return podtest.Images{Images: f.Store, Ref: ref, Dir: leakcheck.Dir(t)}
	})
}
