package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// attackerMount builds the attacker and mounts it in a container that has all rights over its network.
func attackerMount(t *testing.T, n *harness.Node) func(*runtimeapi.ContainerConfig) {
	t.Helper()
	dir := filepath.Join(n.Dir(), "attacker")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "attacker"), "./testdata/attacker")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the attacker: %v: %s", err, out)
	}
	return func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/attacker", Readonly: true}}
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN", "NET_RAW"}}
	}
}

// networkState are addresses, routes and neighbors of a container, without what changes by itself.
func networkState(c *harness.Container) string {
	return c.Output("sh", "-c", `cat /proc/net/if_inet6; ip -4 addr show eth0 | grep inet; cut -f 1-3,8 /proc/net/route
		awk '{print $1, $2, $5, $6, $10}' /proc/net/ipv6_route | sort; awk '{print $1, $4}' /proc/net/arp | sort; ip -6 neigh show dev eth0 | awk '{print $1, $3}' | sort`)
}

// TestPodCannotMisleadNeighbor: a container with NET_ADMIN and NET_RAW announces itself as a router, as the gateway and as a DHCP
// server. The routes, addresses and neighbors of another pod stay as they are, and its DHCP client hears nothing.
func TestPodCannotMisleadNeighbor(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	program := attackerMount(t, n)
	victim, attacker := n.RunPod(), n.RunPod()
	client := victim.Start([]string{"/attacker/attacker", "listen"}, program)
	from := attacker.Start([]string{"sleep", "1000"}, program)
	n.Eventually("the client listens", func() error { return logHas(client, "stdout F listening") })
	gateway4 := client.Output("sh", "-c", "ip -4 route | awk '/^default/ {print $3}'")
	gateway6 := client.Output("sh", "-c", "ip -6 route | awk '/^default/ {print $3}'")
	victim6 := victim.Status().GetNetwork().GetAdditionalIps()[0].GetIp()
	for _, address := range []string{gateway4, gateway6, attacker.IP(), attacker.Status().GetNetwork().GetAdditionalIps()[0].GetIp()} {
		client.Output("ping", "-c", "1", address) // so that it is among the neighbors
	}
	before := networkState(client)
	if !strings.Contains(before, gateway4+" ") || !strings.Contains(before, gateway6+" ") {
		t.Fatalf("the gateways %s and %s are not among the neighbors:\n%s", gateway4, gateway6, before)
	}
	equal(t, "attack", from.Output("/attacker/attacker", "send", victim.IP(), victim6, gateway4, gateway6), "sent")
	// What was sent before these has arrived, or never will.
	n.Eventually("datagrams to other ports arrive", func() error {
		text, err := os.ReadFile(client.Status().GetLogPath())
		if err == nil && strings.Count(string(text), "arrived 1068") != 2 {
			err = fmt.Errorf("the log is %s", text)
		}
		return err
	})
	equal(t, "addresses, routes and neighbors", networkState(client), before)
	for _, port := range []string{"68", "546"} {
		if logHas(client, "stdout F arrived "+port) == nil {
			t.Errorf("an answer to the DHCP client arrived at port %s", port)
		}
	}
}
