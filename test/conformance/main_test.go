package conformance

import (
	"os"
	"testing"

	"github.com/berth-runtime/berth/test/isolation"
)

// TestMain runs the suite on the machine: it and its images come from the network, unless they are in the cache.
func TestMain(m *testing.M) {
	isolation.Off()
	os.Exit(m.Run())
}
