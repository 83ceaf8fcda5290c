// Package handlers knows the runtime handlers of a node: what is configured, whether it works here, and what it
// supports. Each is tried with a container of its own, in the background: one that hangs holds up only those who
// ask for it, and one that failed is tried again when it is asked for later.
package handlers

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/shimv2"
)

const (
	// defaultPatience bounds the wait for the handlers that may become the default, otherPatience that for the others:
	// kubelet may ask only once what they support.
	defaultPatience = 10 * time.Second
	otherPatience   = 2 * time.Second
	// untried is the problem of a handler whose first probe is not through.
	untried = "it is still being tried"
)

// Preferred are the handlers that become the default if they work, in order.
var Preferred = []string{"crun", "runc"}

// Info is a handler with what trying it showed.
type Info struct {
	Handler ociruntime.Handler
	// Annotations are patterns of those that pods may pass to the runtime.
	Annotations []string
	Features    ociruntime.Features
	// NoHostDevices keeps the devices of the host from privileged containers; AllDevices lets them use all devices all the same.
	NoHostDevices, AllDevices bool
	// CgroupWritable lets containers with a cgroup namespace of their own change their cgroups.
	CgroupWritable bool
	// Sandbox is whether a container shall stand for each pod; nil leaves that to what the runtime is.
	Sandbox *bool
	// SandboxContainer tells whether one does. It is known once the handler was tried.
	SandboxContainer bool
	// Problem says why the handler cannot be used; "" if it can.
	Problem string
}

// Probe tries a handler of either type with a probe container, which has a directory beneath dir.
func Probe(ctx context.Context, h ociruntime.Handler, dir string) (ociruntime.Features, error) {
	if h.Type == ociruntime.TypeShimV2 {
		return shimv2.Probe(ctx, h, dir)
	}
	return ociruntime.Probe(ctx, h, dir)
}

// Options say how a set works.
type Options struct {
	// Default is the configured default handler; empty means the first of Preferred that works, else any.
	Default string
	Log     *slog.Logger
	// Trials is the directory for what trying handlers needs.
	Trials string
	// Probe is the function above, unless a test has its own.
	Probe func(ctx context.Context, h ociruntime.Handler, dir string) (ociruntime.Features, error)
	// Fingerprint is [Fingerprint], unless a test has its own.
	Fingerprint func(ociruntime.Handler) string
}

// Set is the handlers of a node. Its methods may be called by many goroutines.
type Set struct {
	opts    Options
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	entries map[string]*entry // never changes

	mu      sync.Mutex // guards what follows, and the entries
	limits  []func(*ociruntime.Features)
	chosen  string // the default, once it is known
	changed chan struct{}
}

type entry struct {
	info    Info
	through bool      // it was tried
	tried   time.Time // when the last probe ended
	// failures counts the probes that failed since one succeeded, fingerprint is what the last one
	// depended on, logged the kind of the problem that was logged last.
	failures            int
	fingerprint, logged string
	probing             chan struct{} // closed when the probe that runs has ended; nil when none does
}

// Open begins to try the configured handlers. The caller ends it with Close.
func Open(configured []Info, opts Options) *Set {
	if opts.Probe == nil {
		opts.Probe = Probe
	}
	if opts.Fingerprint == nil {
		opts.Fingerprint = Fingerprint
	}
	s := &Set{opts: opts, entries: map[string]*entry{}, changed: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, info := range configured {
		info.Problem = untried
		s.entries[info.Handler.Name] = &entry{info: info}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		s.probe(e)
	}
	return s
}

// Restrict takes from the features of every runtime what the host cannot do.
func (s *Set) Restrict(limit func(*ociruntime.Features)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits = append(s.limits, limit)
}

// limited is what the host leaves of a handler. Preconditions: mu is held.
func (s *Set) limited(e *entry) Info {
	info := e.info
	for _, limit := range s.limits {
		limit(&info.Features)
	}
	return info
}

// Close ends the probes under way and waits for their clean-up.
func (s *Set) Close() {
	s.cancel()
	s.wg.Wait()
}

// probe tries a handler in the background. Preconditions: mu is held, no probe of it runs.
func (s *Set) probe(e *entry) {
	e.probing = make(chan struct{})
	handler, want := e.info.Handler, e.info.Sandbox
	e.fingerprint = s.opts.Fingerprint(handler) // before: a change meanwhile counts
	s.wg.Go(func() {
		features, err := s.opts.Probe(s.ctx, handler, s.opts.Trials)
		if err == nil {
			err = checkSandbox(want, handler, features)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		defer close(e.probing)
		e.probing, e.tried, e.through, e.info.Features, e.info.Problem = nil, time.Now(), true, features, ""
		e.info.SandboxContainer = features.Sandboxing
		if want != nil {
			e.info.SandboxContainer = *want
		}
		switch {
		case err != nil && s.ctx.Err() != nil: // the daemon ends
		case err != nil:
			e.failures++
			s.logFailure(e, err)
		default:
			e.failures, e.logged = 0, ""
			s.logVulnerabilities(handler.Name, features)
			s.opts.Log.Info("runtime handler", "handler", handler.Name, "version", features.Version, "spec", features.OCIVersion)
		}
		if err != nil {
			e.info.Problem = err.Error()
		}
		close(s.changed)
		s.changed = make(chan struct{})
	})
}

// logVulnerabilities warns of an OCI runtime with known vulnerabilities.
func (s *Set) logVulnerabilities(handler string, features ociruntime.Features) {
	if known := ociruntime.KnownVulnerabilities(features.Program, features.Version); len(known) > 0 {
		s.opts.Log.Warn("runtime handler has known vulnerabilities", "handler", handler, "program", features.Program,
			"version", features.Version, "vulnerabilities", ociruntime.IDs(known), "note", ociruntime.BackportNote)
	}
}

// checkSandbox refuses a container that stands for the pod where the ends of those beside it cannot be known: of a
// command, only that of gVisor can.
func checkSandbox(want *bool, h ociruntime.Handler, features ociruntime.Features) error {
	if want != nil && *want && h.Type != ociruntime.TypeShimV2 && !features.Sandboxing {
		return fmt.Errorf("runtime handler %q: sandbox_container is for gVisor's runsc and for shims, which %s is not: %w",
			h.Name, h.Path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Get returns a handler that works; "" is the default. It waits while the handler is being tried, and has one tried
// again that did not work some time ago. An unknown name is ErrInvalidArgument, one that does not work
// ErrFailedPrecondition.
func (s *Set) Get(ctx context.Context, name string) (Info, error) {
	if name == "" {
		name = s.Default()
	}
	e, ok := s.entries[name]
	if !ok {
		return Info{}, fmt.Errorf("runtime_handler %q is not configured, there are %s: %w",
			name, strings.Join(slices.Sorted(maps.Keys(s.entries)), ", "), errdefs.ErrInvalidArgument)
	}
	s.mu.Lock()
	s.retry(e, maxRequestRetryAfter)
	probing := e.probing
	s.mu.Unlock()
	if probing != nil {
		select {
		case <-probing:
		case <-ctx.Done():
			return Info{}, fmt.Errorf("wait for runtime_handler %q to be tried: %w", name, ctx.Err())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.info.Problem != "" {
		return Info{}, fmt.Errorf("runtime_handler %q cannot be used: %s: %w", name, e.info.Problem, errdefs.ErrFailedPrecondition)
	}
	return s.limited(e), nil
}

// All returns the handlers by name, without waiting. Those that failed are probed again at growing
// intervals, and when what they depend on has changed.
func (s *Set) All() map[string]Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]Info, len(s.entries))
	for name, e := range s.entries {
		s.retry(e, maxRetryAfter)
		all[name] = s.limited(e)
	}
	return all
}

// Default is the name that "" stands for. It does not change any more once it is that of a handler which works.
func (s *Set) Default() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, _ := s.choose()
	return name
}

// Await waits until it is known which handler is the default, and a moment for the others.
func (s *Set) Await(ctx context.Context) {
	s.await(ctx, defaultPatience, func() bool {
		_, final := s.choose()
		return final
	})
	s.mu.Lock()
	if s.chosen == "" {
		s.chosen = s.firstThatWorks()
	}
	s.mu.Unlock()
	s.await(ctx, otherPatience, func() bool {
		for _, e := range s.entries {
			if !e.through {
				return false
			}
		}
		return true
	})
}

// await waits until a condition holds, which is asked with mu held, or until that takes too long.
func (s *Set) await(ctx context.Context, timeout time.Duration, condition func() bool) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		s.mu.Lock()
		done, changed := condition(), s.changed
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// choose returns the default, and whether it is settled. Preconditions: mu is held.
func (s *Set) choose() (name string, final bool) {
	if s.opts.Default != "" {
		e := s.entries[s.opts.Default]
		return s.opts.Default, e == nil || e.through
	}
	if s.chosen != "" {
		return s.chosen, true
	}
	all := true
	for _, name := range s.order() {
		e := s.entries[name]
		if e.through && e.info.Problem == "" && all {
			s.chosen = name
			return name, true
		}
		all = all && e.through
	}
	if name = s.firstThatWorks(); name == "" {
		name = Preferred[0] // stands for the problem to show
	}
	return name, all
}

// order is that in which handlers are considered for the default.
func (s *Set) order() []string {
	var names []string
	for _, name := range append(slices.Clone(Preferred), slices.Sorted(maps.Keys(s.entries))...) {
		if s.entries[name] != nil && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// firstThatWorks is "" when there is none. Preconditions: mu is held.
func (s *Set) firstThatWorks() string {
	for _, name := range s.order() {
		if s.entries[name].info.Problem == "" {
			return name
		}
	}
	return ""
}
