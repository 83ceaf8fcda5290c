package pod

import (
	"fmt"

	"github.com/containerd/errdefs"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-runtime/berth/internal/network"
)

// The annotations that limit the bandwidth of a pod, in bits per second. Both are seen from the pod.
const (
	annotationIngress = "kubernetes.io/ingress-bandwidth"
	annotationEgress  = "kubernetes.io/egress-bandwidth"
)

const (
	// minBandwidth and maxBandwidth are the limits of Kubernetes: 1k and 1P.
	minBandwidth = 1_000
	maxBandwidth = 1_000_000_000_000_000
)

// bandwidthOf reads the limits of a pod from its annotations.
func bandwidthOf(annotations map[string]string) (network.Bandwidth, error) {
	ingress, err := rateOf(annotations, annotationIngress)
	if err != nil {
		return network.Bandwidth{}, err
	}
	egress, err := rateOf(annotations, annotationEgress)
	return network.Bandwidth{Ingress: ingress, Egress: egress}, err
}

func rateOf(annotations map[string]string, name string) (uint64, error) {
	text, found := annotations[name]
	if !found {
		return 0, nil
	}
	refuse := func(reason string) (uint64, error) {
		return 0, fmt.Errorf("annotation %s %q: %s: %w", name, text, reason, errdefs.ErrInvalidArgument)
	}
	quantity, err := resource.ParseQuantity(text)
	if err != nil {
		return refuse("want a quantity of bits per second, such as 10M")
	}
	switch rate := quantity.Value(); {
	case rate < minBandwidth:
		return refuse("less than 1k")
	case rate > maxBandwidth:
		return refuse("more than 1P")
	default:
		return uint64(rate), nil
	}
}
