package apparmor

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestProfile: the profile is well formed, with and without the files of the
// host's own profiles.
func TestProfile(t *testing.T) {
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		t.Fatal("apparmor_parser is missing: apt-get install apparmor")
	}
	for name, has := range map[string]func(string) bool{"alone": func(string) bool { return false }, "with_includes": exists} {
		t.Run(name, func(t *testing.T) {
			// It is compiled and not loaded.
			parser := exec.CommandContext(t.Context(), "apparmor_parser", "--skip-kernel-load", "--skip-cache", "--stdout")
			parser.Stdin = strings.NewReader(profile(has))
			parser.Stderr = os.Stderr
			if out, err := parser.Output(); err != nil || len(out) == 0 {
				t.Errorf("the profile does not compile: %d bytes, %v\n%s", len(out), err, profile(has))
			}
		})
	}
}

// TestLoad: where the kernel has AppArmor the profile is loaded, as often as
// asked; elsewhere the error says that it cannot be.
func TestLoad(t *testing.T) {
	enabled, err := Enabled()
	if err != nil {
		t.Fatal(err)
	}
	if !enabled {
		if err := Load(t.Context()); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("without AppArmor: got %v, want a failed precondition", err)
		}
		return
	}
	for range 2 {
		if err := Load(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	loaded, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	if err != nil || !strings.Contains(string(loaded), Default+" (enforce)") {
		t.Errorf("it is not among the loaded profiles: %v\n%s", err, loaded)
	}
}
