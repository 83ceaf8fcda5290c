package ociruntime

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestCriuErrors: the error of a checkpoint says what CRIU said, without the
// place in its source and without what it only mentions.
func TestCriuErrors(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, DumpLog)
	text := `(00.000000) Version: 3.17.1 (gitid 0)
(00.033495) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.034000) Warn  (criu/kerndat.c:1290): Can't keep kdat cache on non-tempfs
(00.140352) Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=0 path=/run/in
(00.140353)     26: Error (criu/mount.c:2): in the container
(00.140706) Error (criu/cr-dump.c:2128): Dumping FAILED.
`
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := &CommandError{Handler: "runc", Op: "checkpoint", Code: 1, Message: "criu failed: type NOTIFY errno 0\nlog file: " + log}
	err := explainCriu(refused, log)
	want := "runc checkpoint: criu failed: type NOTIFY errno 0: CRIU says: Can't lookup mount=27 for fd=0 path=/run/in; in the container; Dumping FAILED."
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v, want a failed precondition", err)
	}
	if err := explainCriu(refused, filepath.Join(dir, "none")); err == nil || strings.Contains(err.Error(), "CRIU says") {
		t.Errorf("without a log: got %v, want what the runtime says", err)
	}
	if err := explainCriu(nil, log); err != nil {
		t.Errorf("success became %v", err)
	}
	if other := errors.New("killed"); !errors.Is(explainCriu(other, log), other) {
		t.Error("an error of another kind did not stay as it is")
	}
}

// TestRestoreExplains: CRIU's words are in the error of a restore too, though its log and the runtime's are in one directory.
func TestRestoreExplains(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "runtime")
	script := `#!/bin/sh
while [ "$1" != --log ]; do shift; done
echo '{"level":"error","msg":"criu failed: type NOTIFY errno 0"}' >"$2"
echo "(00.1)      1: Error (criu/namespaces.c:258): Can't setns 14/net" >` + filepath.Join(dir, RestoreLog) + `
exit 1
`
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := New(Handler{Name: "runc", Path: program, Root: filepath.Join(dir, "root")}, Local{})
	if err != nil {
		t.Fatal(err)
	}
	err = r.Restore(t.Context(), RestoreRequest{RunRequest: RunRequest{ID: "one", Bundle: dir, Scratch: dir}, Work: dir})
	if want := "CRIU says: Can't setns 14/net"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want one that has %q", err, want)
	}
}

// TestCheckpointFeature: who can checkpoint says so in its version or features.
func TestCheckpointFeature(t *testing.T) {
	if f := parseVersion("crun version 1.14\nspec: 1.0.0\n+SYSTEMD +SECCOMP +CRIU +YAJL\n"); !f.Checkpoint {
		t.Error("a crun with CRIU was not recognised")
	}
	if f := parseVersion("crun version 1.8.1\nspec: 1.0.0\n+SYSTEMD +SECCOMP +YAJL\n"); f.Checkpoint {
		t.Error("a crun without CRIU passes for one with it")
	}
	var f Features
	if err := f.apply([]byte(`{"annotations":{"org.opencontainers.runc.checkpoint.enabled":"true"}}`)); err != nil || !f.Checkpoint {
		t.Errorf("runc's answer: got %+v, %v", f, err)
	}
}

func FuzzCriuErrors(f *testing.F) {
	f.Add([]byte("(00.1) Error (a.c:1): x\n"))
	f.Fuzz(func(t *testing.T, log []byte) {
		if text := criuErrors(log); len(text) > maxMessage+len("…") {
			t.Errorf("%d bytes", len(text))
		}
	})
}

// TestCheckCRIU: what is said is what the program says, and it is not asked again at once.
func TestCheckCRIU(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	install := func(body string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "criu"), []byte("#!/bin/sh\n"+body), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := new(CRIU).Check(t.Context()); !errdefs.IsNotFound(err) {
		t.Errorf("without the program: %v, want that it is not found", err)
	}
	install("echo 'Error (criu/vdso.c:381): vdso: Unexpected bounds' >&2; exit 1")
	var c CRIU
	if err := c.Check(t.Context()); err == nil || !strings.HasSuffix(err.Error(), "kernel: vdso: Unexpected bounds") {
		t.Errorf("with a kernel that it does not know: %v", err)
	}
	install("test \"$*\" = check && echo Looks good.")
	if err := c.Check(t.Context()); err == nil {
		t.Error("it was asked again at once")
	}
	if err := new(CRIU).Check(t.Context()); err != nil {
		t.Errorf("where it works: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var left CRIU
	if err := left.Check(ended); err == nil || !left.checked.IsZero() {
		t.Errorf("a caller that has left: %v, checked at %v", err, left.checked)
	}
	install("exit 3")
	if err := left.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("without a reason: %v", err)
	}
}
