package network

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
)

// The built-in network drops what exceeds the limits of a pod in either direction, and passes the rest.
func TestBandwidthIsEnforced(t *testing.T) {
	r := newRig(t, nil)
	pod := r.pod("a")
	pod.Bandwidth = Bandwidth{Ingress: 2_000_000, Egress: 1_000_000}
	plan, err := r.Plan(pod)
	must(t, err)
	result, err := r.Attach(t.Context(), pod, plan)
	must(t, err)
	r.restart()
	serve(t, pod, "tcp", 80)
	expect(t, "", "tcp", at(result.IPs[0], 80), "a")
	expect(t, "", "tcp", at(result.IPs[1], 80), "a")
	for _, limited := range []struct {
		device, netns, target string
		rate                  uint64
	}{
		{vethName(pod.ID), hostSelf, at(result.IPs[0], 9), 2_000_000 / 8},
		{shaperName(pod.ID), pod.NetNS, at("10.85.0.1", 9), 1_000_000 / 8},
	} {
		if got := bucketOf(t, limited.device).Rate; got != limited.rate {
			t.Errorf("%s is limited to %d bytes per second, want %d", limited.device, got, limited.rate)
		}
		var conn net.Conn
		inside(t, limited.netns, func() (err error) { conn, err = net.Dial("udp", limited.target); return err })
		eventually(t, limited.device+" drops packets", func() bool {
			for range 200 {
				_, _ = conn.Write(make([]byte, 1400)) // refused where nothing listens
			}
			return bucketOf(t, limited.device).Statistics.Queue.Drops > 0
		})
		must(t, conn.Close())
	}
	must(t, r.Detach(t.Context(), pod, plan))
	r.settle()
	if _, err := netlink.LinkByName(shaperName(pod.ID)); err == nil {
		t.Errorf("%s is still there", shaperName(pod.ID))
	}
}

// hostSelf is the network namespace of the host of the tests.
const hostSelf = "/proc/self/ns/net"

// bucketOf returns the token bucket of a device.
func bucketOf(t testing.TB, device string) *netlink.Tbf {
	t.Helper()
	link, err := netlink.LinkByName(device)
	must(t, err)
	queues, err := netlink.QdiscList(link)
	must(t, err)
	for _, queue := range queues {
		if bucket, ok := queue.(*netlink.Tbf); ok {
			return bucket
		}
	}
	t.Fatalf("%s has no token bucket but %v", device, queues)
	return nil
}
