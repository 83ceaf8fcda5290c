package handlers

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/ociruntime"
)

// moods are how the handlers of a test behave.
type moods map[string]func(ctx context.Context) error

func works(context.Context) error { return nil }

func fails(context.Context) error { return errors.New("no luck today") }

func hangs(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func open(t *testing.T, configured string, m moods) *Set {
	var list []Info
	for name := range m {
		list = append(list, Info{Handler: ociruntime.Handler{Name: name}})
	}
	s := Open(list, Options{
		Default: configured, Log: slog.New(slog.DiscardHandler),
		Trials: t.TempDir(),
		Probe: func(ctx context.Context, h ociruntime.Handler, _ string) (ociruntime.Features, error) {
			return ociruntime.Features{Version: h.Name, RecursiveReadOnly: true}, m[h.Name](ctx)
		},
	})
	s.Restrict(func(f *ociruntime.Features) { f.RecursiveReadOnly = false })
	t.Cleanup(s.Close)
	return s
}

// TestDefaultIsTheFirstThatWorks: what is configured, else the first preferred one that works, else any.
func TestDefaultIsTheFirstThatWorks(t *testing.T) {
	for name, c := range map[string]struct {
		configured string
		moods      moods
		want       string
	}{
		"configured":      {"runc", moods{"crun": works, "runc": fails}, "runc"},
		"crun_first":      {"", moods{"crun": works, "runc": works}, "crun"},
		"runc_instead":    {"", moods{"crun": fails, "runc": works}, "runc"},
		"any_other":       {"", moods{"crun": fails, "runc": fails, "youki": works}, "youki"},
		"none_that_works": {"", moods{"crun": fails, "runc": fails}, "crun"},
		"crun_hangs":      {"", moods{"crun": hangs, "runc": works}, "runc"},
		"all_hang":        {"", moods{"crun": hangs, "runc": hangs}, "crun"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := open(t, c.configured, c.moods)
				begun := time.Now()
				s.Await(t.Context())
				if got := s.Default(); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
				if waited := time.Since(begun); waited > defaultPatience+otherPatience {
					t.Errorf("waited %v", waited)
				}
				s.Close()
			})
		})
	}
}

// TestHungHandlerHoldsUpNobodyElse: who asks for another one does not wait, who asks for it waits as long as he likes.
func TestHungHandlerHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, "", moods{"runc": works, "sick": hangs})
		s.Await(t.Context())
		begun := time.Now()
		info, err := s.Get(t.Context(), "")
		if err != nil || info.Features.Version != "runc" || info.Features.RecursiveReadOnly || time.Since(begun) != 0 {
			t.Errorf("got %+v, %v after %v", info, err, time.Since(begun))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := s.Get(ctx, "sick"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if got := s.All()["sick"].Problem; got != untried {
			t.Errorf("got %q", got)
		}
		s.Close()
	})
}

// TestFailedHandlerIsTriedAgain: not at once, but when it is asked for later.
func TestFailedHandlerIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		probes, mood := 0, fails
		s := open(t, "runc", moods{"runc": func(ctx context.Context) error {
			probes++
			return mood(ctx)
		}})
		for range 5 {
			if _, err := s.Get(t.Context(), "runc"); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("got %v", err)
			}
		}
		if probes != 1 {
			t.Errorf("%d probes", probes)
		}
		mood = works
		time.Sleep(retryAfter + time.Second)
		if _, err := s.Get(t.Context(), "runc"); err != nil || probes != 2 {
			t.Errorf("got %v after %d probes", err, probes)
		}
		if _, err := s.Get(t.Context(), "kata"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v", err)
		}
		s.Close()
	})
}

// TestSandboxContainer: what the runtime is decides, unless it was configured. A command that cannot be asked how a
// container ended is refused.
func TestSandboxContainer(t *testing.T) {
	yes, no := true, false
	for name, c := range map[string]struct {
		kind       string
		sandboxing bool
		configured *bool
		want       bool
		problem    string
	}{
		"runc":        {ociruntime.TypeOCI, false, nil, false, ""},
		"runsc":       {ociruntime.TypeOCI, true, nil, true, ""},
		"runsc-never": {ociruntime.TypeOCI, true, &no, false, ""},
		"runc-always": {ociruntime.TypeOCI, false, &yes, true, "sandbox_container"},
		"shim-always": {ociruntime.TypeShimV2, false, &yes, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := Open([]Info{{Handler: ociruntime.Handler{Name: name, Type: c.kind}, Sandbox: c.configured}}, Options{
				Log: slog.New(slog.DiscardHandler),
				Probe: func(context.Context, ociruntime.Handler, string) (ociruntime.Features, error) {
					return ociruntime.Features{Sandboxing: c.sandboxing}, nil
				},
			})
			defer s.Close()
			s.Await(t.Context())
			got := s.All()[name]
			if got.SandboxContainer != c.want || !strings.Contains(got.Problem, c.problem) || c.problem == "" && got.Problem != "" {
				t.Errorf("got %t, problem %q", got.SandboxContainer, got.Problem)
			}
		})
	}
}
