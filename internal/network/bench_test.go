package network

import (
	"path/filepath"
	"testing"

	"github.com/berth-runtime/berth/internal/namespace"
)

// BenchmarkBuiltin measures what the built-in network adds to the start and the end of a pod.
func BenchmarkBuiltin(b *testing.B) {
	for name, ports := range map[string][]PortMapping{"Plain": nil, "HostPort": {{ContainerPort: 80, HostPort: 8080}}} {
		for _, op := range []string{"Attach", "Detach"} {
			b.Run(name+op, func(b *testing.B) {
				r := newRig(b, nil)
				r.connect("keep") // the bridge is there
				for b.Loop() {
					b.StopTimer()
					pod := r.pod("bench", ports...)
					if op == "Attach" {
						b.StartTimer()
					}
					if _, err := r.Attach(b.Context(), pod, Plan{Kind: Builtin}); err != nil {
						b.Fatal(err)
					}
					if op == "Attach" {
						b.StopTimer()
					} else {
						b.StartTimer()
					}
					if err := r.Detach(b.Context(), pod, Plan{Kind: Builtin}); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					if err := namespace.Remove(b.Context(), filepath.Dir(pod.NetNS)); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			})
		}
	}
}
