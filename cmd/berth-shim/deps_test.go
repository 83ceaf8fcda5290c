package main

import (
	"flag"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite deps.txt")

// TestDependencies compares what the program links with the checked-in list. Its
// memory is a promise, so a new dependency is a decision: look at it, then run
// `go test ./cmd/berth-shim -rewrite`.
func TestDependencies(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("list dependencies: %v", err)
	}
	got := strings.Fields(string(out))
	slices.Sort(got)
	if *rewrite {
		if err := os.WriteFile("deps.txt", []byte(strings.Join(got, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile("deps.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(text))
	for _, dep := range got {
		if !slices.Contains(want, dep) {
			t.Errorf("links %s, which is not in deps.txt", dep)
		}
	}
	for _, dep := range want {
		if !slices.Contains(got, dep) {
			t.Errorf("deps.txt has %s, which is not linked any more", dep)
		}
	}
	// Of gRPC only the error types that ttrpc uses, with what they need themselves; of Kubernetes nothing.
	for _, dep := range got {
		if dep == "google.golang.org/grpc" || strings.HasPrefix(dep, "google.golang.org/grpc/internal/transport") ||
			strings.HasPrefix(dep, "golang.org/x/net/http2") || strings.HasPrefix(dep, "k8s.io/") {
			t.Errorf("links %s", dep)
		}
	}
}
