package handlers

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-runtime/berth/internal/ociruntime"
)

// flakyHandler is a set with one handler that fails each probe.
type flakyHandler struct {
	*Set
	probes      int
	problem     string
	fingerprint string
	log         bytes.Buffer
}

func openFlaky(t *testing.T) *flakyHandler {
	f := &flakyHandler{problem: "no luck"}
	f.Set = Open([]Info{{Handler: ociruntime.Handler{Name: "runc"}}}, Options{
		Log: slog.New(slog.NewTextHandler(&f.log, nil)), Trials: t.TempDir(),
		Probe: func(context.Context, ociruntime.Handler, string) (ociruntime.Features, error) {
			f.probes++
			if f.problem == "" {
				return ociruntime.Features{}, nil
			}
			return ociruntime.Features{}, fmt.Errorf("container berth-probe-%dx failed: %s", f.probes, f.problem)
		},
		Fingerprint: func(ociruntime.Handler) string { return f.fingerprint },
	})
	synctest.Wait()
	return f
}

// ask asks for the status as kubelet does, every ten seconds for a while.
func (f *flakyHandler) ask(span time.Duration) {
	for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(10 * time.Second) {
		f.All()
		synctest.Wait()
	}
}

// TestProbesBackOff: a handler that does not work is probed at intervals that grow to an hour, and its
// problem is logged once.
func TestProbesBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFlaky(t)
		f.ask(24 * time.Hour)
		if f.probes < 24 || f.probes > 40 {
			t.Errorf("%d probes in a day, want one an hour and some at the beginning", f.probes)
		}
		if lines := strings.Count(f.log.String(), "runtime handler unavailable"); lines != 1 {
			t.Errorf("the problem was logged %d times:\n%s", lines, f.log.String())
		}
		before := f.probes
		f.problem = "another reason"
		f.ask(2 * time.Hour)
		if lines := strings.Count(f.log.String(), "runtime handler unavailable"); lines != 2 || f.probes == before {
			t.Errorf("after a change of the problem: logged %d times, %d probes", lines, f.probes-before)
		}
		f.Close()
	})
}

// TestChangeIsProbedAtOnce: what a probe depends on has changed, so the next request probes.
func TestChangeIsProbedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFlaky(t)
		f.ask(12 * time.Hour)
		before := f.probes
		f.fingerprint, f.problem = "new", ""
		f.All()
		synctest.Wait()
		if got := f.All()["runc"].Problem; f.probes != before+1 || got != "" {
			t.Errorf("%d probes, problem %q", f.probes-before, got)
		}
		f.ask(time.Hour)
		if f.probes != before+1 {
			t.Error("a handler that works was probed again")
		}
		f.Close()
	})
}

// TestFingerprint: a new program, a new configuration file and one that is gone change it; two looks at
// the same do not.
func TestFingerprint(t *testing.T) {
	dir := t.TempDir()
	program, settings := filepath.Join(dir, "runtime"), filepath.Join(dir, "runtime.toml")
	write := func(file, content string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	h := ociruntime.Handler{Path: program, Type: ociruntime.TypeShimV2, Options: map[string]string{"config_path": settings}}
	last := Fingerprint(h)
	for _, change := range []struct {
		name string
		make func()
	}{
		{"program appears", func() { write(program, "1") }},
		{"program is replaced", func() { write(program, "2") }},
		{"configuration appears", func() { write(settings, "1") }},
		{"configuration is replaced", func() { write(settings, "2") }},
		{"program goes", func() {
			if err := os.Remove(program); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		change.make()
		now := Fingerprint(h)
		if now == last || now != Fingerprint(h) {
			t.Errorf("%s: was %q, is %q", change.name, last, now)
		}
		last = now
	}
}

// TestVulnerabilitiesAreLogged: a handler that works and has known vulnerabilities is named once.
func TestVulnerabilitiesAreLogged(t *testing.T) {
	var log bytes.Buffer
	s := Open([]Info{{Handler: ociruntime.Handler{Name: "runc"}}}, Options{
		Log: slog.New(slog.NewTextHandler(&log, nil)),
		Probe: func(context.Context, ociruntime.Handler, string) (ociruntime.Features, error) {
			return ociruntime.Features{Program: "runc", Version: "1.1.11"}, nil
		},
	})
	defer s.Close()
	s.Await(t.Context())
	if _, err := s.Get(t.Context(), "runc"); err != nil {
		t.Fatal(err)
	}
	if strings.Count(log.String(), "CVE-2024-21626") != 1 || !strings.Contains(log.String(), "backported") {
		t.Errorf("log is\n%s", log.String())
	}
}
