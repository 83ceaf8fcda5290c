package spec

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// cdiAnnotation begins the annotations of a container by which device plugins
// named devices before the request had a field for them. Kubelet takes them
// from its plugins, not from the pod.
const cdiAnnotation = "cdi.k8s.io/"

// cdiName is one device that is asked for by name.
type cdiName struct{ field, name string }

// cdiNames lists the devices that a request names, each once: kubelet before
// 1.37 repeats them.
func cdiNames(config *runtimeapi.ContainerConfig) []cdiName {
	var names []cdiName
	seen := map[string]bool{}
	add := func(field, name string) {
		if !seen[name] {
			seen[name] = true
			names = append(names, cdiName{field, name})
		}
	}
	for i, device := range config.GetCDIDevices() {
		add(fmt.Sprintf("CDI_devices[%d].name", i), device.GetName())
	}
	for _, key := range slices.Sorted(maps.Keys(config.GetAnnotations())) {
		if !strings.HasPrefix(key, cdiAnnotation) {
			continue
		}
		for name := range strings.SplitSeq(config.GetAnnotations()[key], ",") {
			add(fmt.Sprintf("annotations[%q]", key), name)
		}
	}
	return names
}

func validateCDI(config *runtimeapi.ContainerConfig) error {
	names := cdiNames(config)
	if err := checkBounds(bound{"CDI_devices", len(names), maxItems}); err != nil {
		return err
	}
	for _, n := range names {
		if _, _, _, err := parser.ParseQualifiedName(n.name); err != nil {
			return invalid(n.field, n.name, err.Error())
		}
	}
	return nil
}

// injectCDI gives a container the devices that its request names.
func injectCDI(ctx context.Context, in Input, result *specs.Spec) error {
	if err := goesOn(ctx, "CDI_devices"); err != nil {
		return err
	}
	wanted := cdiNames(in.Config)
	if len(wanted) == 0 {
		return nil
	}
	if in.InjectCDI == nil {
		return unavailable(wanted[0].field, wanted[0].name,
			"the Container Device Interface is switched off: cdi.spec_dirs is empty")
	}
	names := make([]string, len(wanted))
	for i, n := range wanted {
		names[i] = n.name
	}
	if err := in.InjectCDI(result, names); err != nil {
		return fmt.Errorf("CDI_devices: %w", err)
	}
	return nil
}
