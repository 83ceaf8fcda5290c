package ociruntime

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// TestProbeRunsAContainer probes the runtimes of this host. crun needs every v1
// controller mounted as v1, which the set-up of these tests provides.
func TestProbeRunsAContainer(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	mountHugetlb(t)
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			features, err := Probe(t.Context(), Handler{Name: name, Type: TypeOCI, Path: name}, probeDir(t))
			if err != nil {
				t.Fatalf("probe: %v", err)
			}
			if features.Version == "" || features.OCIVersion == "" {
				t.Errorf("got %+v, want versions", features)
			}
			t.Logf("%s: version %s, OCI %s, rro %v, user namespaces %v %s", name, features.Version, features.OCIVersion,
				features.RecursiveReadOnly, features.UserNamespaces, features.UserNamespacesProblem)
		})
	}
}

// probeDir is a directory that is open to root of a user namespace.
func probeDir(t *testing.T) string {
	t.Helper()
	dir := leakcheck.Dir(t)
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// script writes a shell script that stands for a broken runtime.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestProbeSaysWhatIsWrong(t *testing.T) {
	privilege.Root(t)
	for _, tc := range []struct {
		name, path, want string
		kind             error
	}{
		{"missing", "/nowhere/runc", "/nowhere/runc", errdefs.ErrFailedPrecondition},
		{"hangs", script(t, "exec sleep 1000"), "did not finish in time", context.DeadlineExceeded},
		{"fails", script(t, "echo 'the disk is on fire' >&2; exit 3"), "the disk is on fire", errdefs.ErrUnknown},
		{"silent", script(t, "exit 7"), "code 7", errdefs.ErrUnknown},
		{
			"complains of hugetlb", script(t, `case "$*" in *version*) echo runc version 1; echo spec: 1.0.0;; *) echo hugetlb missing >&2; exit 1;; esac`),
			"remedy: mount the controller", errdefs.ErrUnknown,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := t.Context()
			if errors.Is(tc.kind, context.DeadlineExceeded) {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Second)
				defer cancel()
			}
			_, err := Probe(ctx, Handler{Name: "x", Type: TypeOCI, Path: tc.path}, t.TempDir())
			if !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %v with %q", err, tc.kind, tc.want)
			}
		})
	}
}

// TestProbeEndsWhatItStarted: a runtime that hangs is killed with its children.
func TestProbeEndsWhatItStarted(t *testing.T) {
	held := filepath.Join(t.TempDir(), "held")
	if err := syscall.Mkfifo(held, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(held, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = Probe(ctx, Handler{Name: "x", Type: TypeOCI, Path: script(t, "sleep 1000 3>"+held+" & wait")}, t.TempDir())
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that the deadline is exceeded", err)
	}
	// The end of the file comes when its last writer has closed it.
	if err := reader.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := reader.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read what the child of the runtime holds open: %d, %v, want its end", n, err)
	}
}

func TestParseVersion(t *testing.T) {
	runc := parseVersion("runc version 1.1.5+ds1\ncommit: x\nspec: 1.0.2-dev\ngo: go1.19.8\n")
	if runc.Version != "1.1.5+ds1" || runc.OCIVersion != "1.0.2-dev" || runc.RecursiveReadOnly {
		t.Errorf("runc: %+v", runc)
	}
	crun := parseVersion("crun version 1.8.1\ncommit: x\nspec: 1.0.0\n+SYSTEMD\n")
	if crun.Version != "1.8.1" || crun.OCIVersion != "1.0.0" || !crun.RecursiveReadOnly {
		t.Errorf("crun: %+v", crun)
	}
}

// FuzzParseLog: whatever a runtime writes into its log, the message is bounded and valid text.
func FuzzParseLog(f *testing.F) {
	f.Add([]byte(`{"level":"error","msg":"exec: \"nope\": executable file not found in $PATH"}`))
	f.Add([]byte("panic: runtime error\ngoroutine 1"))
	f.Add([]byte("\xff\xfe{"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if got := parseLog(text); len(got) > maxMessage+4 {
			t.Errorf("message of %d bytes", len(got))
		}
	})
}

// TestKindOfCommandErrors: what an OCI runtime says about a program or a limit that cannot be is no error without a kind.
func TestKindOfCommandErrors(t *testing.T) {
	for _, c := range []struct{ handler, op, message string }{
		{"crun", "exec", "open executable: Operation not permitted"},
		{"crun", "exec", "open executable: File name too long"},
		{"crun", "run", "executable file `/nope` not found: No such file or directory"},
		{"runc", "exec", `exec failed: unable to start container process: exec: "/": is a directory: unknown`},
		{"crun", "update", "writing file `memory.limit_in_bytes`: Device or resource busy"},
		{"runc", "update", "unable to set memory limit to 4096 (current usage: 9, peak usage: 9)"},
	} {
		err := error(&CommandError{Handler: c.handler, Op: c.op, Code: 1, Message: c.message})
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%v: no failed precondition", err)
		}
	}
	if err := error(&CommandError{Handler: "runc", Op: "update", Message: "no space left on device"}); errdefs.IsFailedPrecondition(err) {
		t.Errorf("%v: a failed precondition", err)
	}
}
