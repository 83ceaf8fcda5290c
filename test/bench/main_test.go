package bench

import (
	"os"
	"testing"

	"github.com/berth-runtime/berth/test/harness"
)

// TestMain runs the tests in namespaces of their own.
func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
