package layers

import (
	"slices"
	"strings"
	"testing"
)

// order lists the layers from the top down. A package may import what is in a lower layer than its own; what is in the
// same one does not know of it, with the exceptions below.
var order = [][]string{
	{"cmd"},
	{"internal/cri", "internal/cli"},
	{"internal/pod", "internal/stream"},
	{"internal/cdi", "internal/checkpoint", "internal/hook", "internal/image", "internal/network", "internal/nri", "internal/spec", "internal/shim", "internal/stats"},
	{"internal/apparmor", "internal/selinux", "internal/ociruntime", "internal/cgroup", "internal/namespace"},
	{"internal/config", "internal/telemetry", "internal/notify", "internal/version", "internal/errcode", "internal/proc", "internal/warning", "internal/directory", "api"},
	{"internal/text", "internal/atomicfile"},
}

// ban forbids imports.
type ban struct {
	// from and except are packages of ours; to are import paths of any module.
	from, except, to []string
	// deep looks at everything that is linked, not only at what is imported by name.
	deep bool
	why  string
}

var bans = []ban{
	{
		from: []string{"internal"}, to: []string{module + "internal/cri"},
		except: []string{"internal/cri"},
		why:    "the way of a request is one way: only the programs know the gRPC edge",
	},
	{
		from: []string{"internal", "cmd", "api"}, to: []string{module + "test"},
		why: "what ships does not depend on what tests it",
	},
	{
		from: []string{"cmd/berth", "internal/cli"},
		to: []string{
			module + "internal/cri", module + "internal/pod", module + "internal/image", module + "internal/shim",
			module + "internal/stream",
		},
		why: "the command line is a CRI client like any other, so it works with every endpoint",
	},
	{
		from: []string{"cmd/berth-shim"}, deep: true,
		to: []string{
			// ttrpc itself links grpc's codes and status, which are small; these two are what a gRPC server and client pull in.
			"google.golang.org/grpc/internal/transport", "google.golang.org/grpc/resolver",
			"k8s.io", "github.com/containerd/containerd/v2", "github.com/containernetworking/cni",
			"github.com/google/nftables", "go.etcd.io/bbolt", "github.com/prometheus/client_golang", "net/http",
		},
		why: "the supervisor's memory is a promise and it must not fail: no gRPC, no Kubernetes types, no image and no network code",
	},
	{
		from: []string{"internal/pod/machine"},
		to:   []string{"os", "net", "io", "time", "sync", "context", "math/rand", "log", "log/slog", "golang.org/x/sys"},
		why:  "the core is pure: no goroutine, clock or I/O, so that whole histories can be tested as text",
	},
	{
		// ttrpc carries grpc's codes; a client of ours needs to read them; a metric counts them.
		from: []string{"internal"}, except: []string{"internal/cri", "internal/errcode", "internal/shim/wire", "internal/ociruntime/shimv2", "internal/cli", "internal/telemetry"},
		to:  []string{"google.golang.org/grpc"},
		why: "gRPC and its codes appear once, in internal/cri; elsewhere errors have kinds of containerd/errdefs",
	},
	{
		from: []string{"internal"}, except: []string{"internal/image"},
		to: []string{
			"github.com/containerd/containerd/v2/core", "github.com/containerd/containerd/v2/plugins", "go.etcd.io/bbolt",
		},
		why: "what stores images is known to internal/image alone; pod state is files, not a database",
	},
	{
		from: []string{"internal"}, except: []string{"internal/network"},
		to:  []string{"github.com/containernetworking/cni", "github.com/google/nftables"},
		why: "how a pod gets its network is known to internal/network alone",
	},
	{
		from: []string{"internal/checkpoint", "internal/image", "internal/network", "internal/shim", "internal/ociruntime", "internal/cgroup", "internal/namespace"},
		to:   []string{"k8s.io"},
		why:  "the managers serve the pod engine, not the protocol of the kubelet",
	},
	{
		from: []string{"internal", "cmd"}, except: []string{"internal/cri", "internal/cli", "cmd/berthd", "cmd/berth"},
		to:  []string{module + "api"},
		why: "only both ends of the protocol know its messages",
	},
}

// known are packages of one layer which may know each other all the same.
var known = []struct{ from, to, why string }{
	{"internal/namespace", "internal/ociruntime/staticelf", "a user namespace begins with a process, which is the built-in program"},
	{"internal/ociruntime/probecontainer", "internal/cgroup", "what a probe container leaves in cgroups is emptied and removed as those of pods are"},
}

func layerOf(name string) int {
	return slices.IndexFunc(order, func(layer []string) bool { return withinAny(name, layer) })
}

// TestDirection: imports point one way, from the programs down.
func TestDirection(t *testing.T) {
	for _, p := range packages(t) {
		if within(p.name(), "test") {
			continue // a test may look at everything
		}
		from := layerOf(p.name())
		if from < 0 {
			t.Errorf("%s is in no layer: give it a place in test/layers/layers_test.go", p.name())
			continue
		}
		for _, i := range p.Imports {
			name, ours := strings.CutPrefix(i, module)
			if to := layerOf(name); ours && to >= 0 && to <= from && !sameNoun(p.name(), name) && !isKnown(p.name(), name) {
				t.Errorf("%s imports %s, which is not below it: packages of one layer meet through an interface that the caller declares", p.name(), name)
			}
		}
	}
}

// sameNoun: a package and its parts (internal/pod and internal/pod/machine).
func sameNoun(a, b string) bool {
	noun := func(s string) string { return strings.Join(strings.SplitN(s, "/", 3)[:2], "/") }
	return strings.Contains(a, "/") && strings.Contains(b, "/") && noun(a) == noun(b)
}

func isKnown(from, to string) bool {
	for _, k := range known {
		if within(from, k.from) && within(to, k.to) {
			return true
		}
	}
	return false
}

// TestBans: no package imports what is forbidden to it, tests included where they are in the package.
func TestBans(t *testing.T) {
	all := packages(t)
	for _, b := range bans {
		for _, p := range all {
			if !withinAny(p.name(), b.from) || withinAny(p.name(), b.except) {
				continue
			}
			imports := p.Imports
			if b.deep {
				imports = p.Deps
			}
			for _, i := range imports {
				if withinAny(i, b.to) {
					t.Errorf("%s imports %s: %s", p.name(), i, b.why)
				}
			}
		}
	}
}

// TestRulesSpeakOfSomething: a rule about a package that is gone protects nothing.
func TestRulesSpeakOfSomething(t *testing.T) {
	all := packages(t)
	exists := func(pattern string) bool {
		return slices.ContainsFunc(all, func(p pkg) bool { return within(p.name(), pattern) })
	}
	var named []string
	for _, layer := range order {
		named = append(named, layer...)
	}
	for _, b := range bans {
		if b.why == "" {
			t.Errorf("the ban of %v for %v gives no reason", b.to, b.from)
		}
		named = append(named, b.from...)
		named = append(named, b.except...)
		for _, to := range b.to {
			if name, ours := strings.CutPrefix(to, module); ours {
				named = append(named, name)
			}
		}
	}
	for _, k := range known {
		named = append(named, k.from, k.to)
	}
	slices.Sort(named)
	for _, name := range slices.Compact(named) {
		if !exists(name) {
			t.Errorf("a rule speaks of %s, which does not exist", name)
		}
	}
}
