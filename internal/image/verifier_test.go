package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// Programs of the administrator decide about each pull by name and digest. One
// that refuses, or that cannot be asked, leaves nothing of the image.
func TestVerifiers(t *testing.T) {
	privilege.Root(t)
	dir := t.TempDir()
	f := newFixtureWith(t, image.Options{VerifierDir: dir}, registry.Options{})
	good, a := f.push("good:1", hello())
	bad, _ := f.push("bad:1", bigger(1))
	program := "#!/bin/sh\ncase \"$2 $4\" in */good:1\\ " + a.Descriptor.Digest.String() + ") echo signed;; *) echo not signed; exit 3;; esac\n"
	verifier := filepath.Join(dir, "policy")
	if err := os.WriteFile(verifier, []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	if id := f.pull(good); id != a.ID {
		t.Errorf("signed image: got %s", id)
	}
	if err := errors.Join(f.Remove(t.Context(), good), f.GC(t.Context())); err != nil {
		t.Fatal(err)
	}
	refused := func(what, ref, says string) {
		t.Helper()
		_, err := f.Pull(t.Context(), ref, image.Auth{})
		if _, ok := errors.AsType[*image.RefusedError](err); !ok || !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want a refusal that says %q", what, err, says)
		}
		f.nothingLeft()
	}
	refused("not signed", bad, "not signed")
	if err := os.WriteFile(verifier, []byte("#!/no/such/program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	refused("verifier cannot run", good, "policy")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	refused("no verifiers", good, dir)
}
