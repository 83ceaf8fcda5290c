package integration

import (
	"os"
	"testing"

	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/isolation"
)

// TestMain runs the tests in namespaces of their own. The go command may need the network to build crictl, so that is
// done before. If it fails, the tests that need crictl say why.
func TestMain(m *testing.M) {
	if isolation.Wanted() && !isolation.Active() {
		if program, err := crictlProgram(); err == nil {
			if err := os.Setenv(crictlVariable, program); err != nil {
				panic(err)
			}
		}
	}
	os.Exit(harness.Main(m))
}
