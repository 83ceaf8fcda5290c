package probecontainer

import (
	"os"
	"testing"

	"github.com/berth-runtime/berth/test/isolation"
)

// TestMain runs the tests in namespaces of their own.
func TestMain(m *testing.M) { os.Exit(isolation.Main(m)) }
