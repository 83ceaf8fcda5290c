package pod

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestBandwidthIsChecked: annotations that Kubernetes would not take are refused by name and value.
func TestBandwidthIsChecked(t *testing.T) {
	for _, name := range []string{annotationIngress, annotationEgress} {
		for _, value := range []string{"", "lots", "999", "-1M", "1001T", "10 M", "0"} {
			_, err := bandwidthOf(map[string]string{name: value})
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name+` "`+value+`"`) {
				t.Errorf("%s %q: %v, want it refused by name and value", name, value, err)
			}
		}
		for value, want := range map[string]uint64{"1k": 1000, "1P": 1e15, "1.5M": 1_500_000, "1Gi": 1 << 30, "1e6": 1e6} {
			got, err := bandwidthOf(map[string]string{name: value})
			if err != nil || got.Ingress+got.Egress != want {
				t.Errorf("%s %q: %v, %v, want %d", name, value, got, err, want)
			}
		}
	}
}
