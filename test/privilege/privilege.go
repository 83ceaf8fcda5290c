// Package privilege decides which tests run: `make test` runs all of them as root, `make check` those
// that need no root, as any user.
package privilege

import (
	"fmt"
	"os"
	"testing"
)

// Variable is the environment variable that leaves out tests that need root, also for root.
const Variable = "BERTH_TESTS"

// unprivileged is the value of Variable.
const unprivileged = "unprivileged"

// Available returns whether tests may make namespaces, mounts and cgroups.
func Available() bool { return os.Geteuid() == 0 && os.Getenv(Variable) != unprivileged }

// Root skips a test that makes namespaces, mounts or cgroups if it must not. `make test` skips none.
func Root(t testing.TB) {
	t.Helper()
	if !Available() {
		t.Skip("needs root: run make test")
	}
}

// Package is Available for a package all of whose tests need root: it says so if they must not run. Call
// it in TestMain and return if it is false.
func Package() bool {
	if !Available() {
		fmt.Println("all tests of this package need root: run make test")
		return false
	}
	return true
}
