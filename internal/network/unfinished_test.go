package network

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// A pod whose ADD could not work, because of a plugin that cannot be run, can go all the same.
func TestUnusablePlugins(t *testing.T) {
	for name, list := range map[string]string{
		"Type":    bridgeList("1.0.0", `, {"type": "../special"}`),
		"Version": bridgeList("1.0.0", `, {"type": "old"}`),
		"IPAM":    strings.Replace(bridgeList("1.0.0", portmap), `"host-local"`, `"nowhere"`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			r := withList(t, list, ownBin)
			r.plugin("old", `[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"0.4.0","supportedVersions":["0.4.0"]}' && exit 0
echo '{"cniVersion":"0.4.0","code":1,"msg":"incompatible CNI versions"}'
exit 1`)
			pod := r.pod("a", PortMapping{ContainerPort: 80, HostPort: 8080})
			plan, err := r.Plan(pod)
			must(t, err)
			if err := second(r.Attach(t.Context(), pod, plan)); err == nil {
				t.Error("Attach: got no error")
			} else if name != "IPAM" && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("Attach: got %v, want a failed precondition", err)
			}
			must(t, r.Detach(t.Context(), pod, plan))
			must(t, r.Detach(t.Context(), pod, plan))
		})
	}
}

// A plugin that fails in any other way is asked again: what it has made may still be there.
func TestFailingDetachIsRepeated(t *testing.T) {
	r := withList(t, bridgeList("1.0.0", `, {"type": "stubborn"}`), ownBin)
	r.plugin("stubborn", versions+`echo '{"cniVersion":"1.0.0","code":100,"msg":"not today"}'
exit 1`)
	pod := r.pod("a")
	plan, err := r.Plan(pod)
	must(t, err)
	for what, err := range map[string]error{"Attach": second(r.Attach(t.Context(), pod, plan)), "Detach": r.Detach(t.Context(), pod, plan)} {
		if err == nil || !strings.Contains(err.Error(), "not today") {
			t.Errorf("%s: got %v", what, err)
		}
	}
	r.plugin("stubborn", versions+"exit 0")
	must(t, r.Detach(t.Context(), pod, plan))
}
