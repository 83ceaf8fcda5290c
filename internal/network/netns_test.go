package network

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-runtime/berth/internal/namespace"
)

// TestPluginsGetTheNetworkNamespaceBelowVarRun: plugins get a network namespace of /run/netns as /var/run/netns/NAME, as from
// containerd and CRI-O. Agents of networks mount the host's directory under that name and open the path below their mount.
func TestPluginsGetTheNetworkNamespaceBelowVarRun(t *testing.T) {
	if _, err := os.Stat(namespace.NetDir); errors.Is(err, os.ErrNotExist) {
		must(t, os.Mkdir(namespace.NetDir, 0o755))
		t.Cleanup(func() { must(t, os.Remove(namespace.NetDir)) })
	}
	r := withList(t, `{"cniVersion": "1.0.0", "name": "path", "plugins": [{"type": "path"}]}`, ownBin)
	log := filepath.Join(r.dir, "path")
	r.plugin("path", versions+`echo "$CNI_COMMAND $CNI_NETNS" >>`+log+`
[ -e "$CNI_NETNS" ] || exit 1
echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.2.2.2/24","interface":0}]}'`)
	pod := r.pod("a")
	pin := filepath.Join(namespace.NetDir, "cni-"+pod.ID)
	must(t, namespace.PinNet(pod.NetNS, pin))
	t.Cleanup(func() { must(t, namespace.UnpinNet(pin)) })
	pod.NetNS = pin
	plan, err := r.Plan(pod)
	must(t, err)
	_, err = r.Attach(t.Context(), pod, plan)
	must(t, err)
	must(t, r.Detach(t.Context(), pod, plan))
	got, err := os.ReadFile(log)
	must(t, err)
	path := "/var/run/netns/cni-" + pod.ID
	if want := "ADD " + path + "\nDEL " + path + "\n"; string(got) != want {
		t.Errorf("the plugin got %q, want %q", got, want)
	}
}
