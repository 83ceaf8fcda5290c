package network

import (
	"errors"
	"fmt"
	"math"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// burstsPerSecond sets the burst to what the rate gives in 20 ms; minBurst keeps it above the size of a packet.
	burstsPerSecond = 50
	minBurst        = 16 << 10
	// queueBytes may wait beyond the burst. More of them are dropped.
	queueBytes = 64 << 10
	bitsOfByte = 8
	// shaperPrefix begins the names of the devices that shape what pods send.
	shaperPrefix = "bwp"
)

// Bandwidth limits a pod, in bits per second; 0 is no limit.
type Bandwidth struct {
	Ingress uint64 `json:"ingress,omitempty"` // to the pod
	Egress  uint64 `json:"egress,omitempty"`  // from the pod
}

// bandwidthArgs are the limits in the words of CNI, bursts as other runtimes give them. Nil if there is none.
func bandwidthArgs(limits Bandwidth) map[string]uint64 {
	if limits == (Bandwidth{}) {
		return nil
	}
	args := map[string]uint64{}
	if limits.Ingress > 0 {
		args["ingressRate"], args["ingressBurst"] = limits.Ingress, math.MaxUint32
	}
	if limits.Egress > 0 {
		args["egressRate"], args["egressBurst"] = limits.Egress, math.MaxUint32
	}
	return args
}

// shaperName derives the name of the device that shapes what a pod sends from the ID of the pod.
func shaperName(id string) string {
	return shaperPrefix + vethName(id)[len(vethPrefix):]
}

// shape limits what passes the host's device of a pod: what is sent to the pod where it leaves the host, what the pod sends
// in a device that it is redirected to.
func shape(host netlink.Link, l *lease) error {
	if l.Bandwidth.Ingress > 0 {
		if err := limitDevice(host, l.Bandwidth.Ingress); err != nil {
			return fmt.Errorf("limit the bandwidth to the pod: %w", err)
		}
	}
	if l.Bandwidth.Egress == 0 {
		return nil
	}
	if err := shapeEgress(host, l); err != nil {
		return fmt.Errorf("limit the bandwidth of the pod: %w", err)
	}
	return nil
}

func shapeEgress(host netlink.Link, l *lease) error {
	if err := removeShaper(l); err != nil { // of an interrupted call
		return err
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU, attributes.Flags = shaperName(l.ID), host.Attrs().MTU, net.FlagUp
	if err := netlink.LinkAdd(&netlink.Ifb{LinkAttrs: attributes}); err != nil {
		return fmt.Errorf("make device %s: %w", attributes.Name, err)
	}
	shaper, err := netlink.LinkByName(attributes.Name)
	if err != nil {
		return fmt.Errorf("look up device %s: %w", attributes.Name, err)
	}
	if err := limitDevice(shaper, l.Bandwidth.Egress); err != nil {
		return err
	}
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: host.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
	if err := netlink.QdiscAdd(ingress); err != nil {
		return fmt.Errorf("add ingress queue of %s: %w", host.Attrs().Name, err)
	}
	all := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: host.Attrs().Index, Parent: ingress.Handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		ClassId:     netlink.MakeHandle(1, 1),
		Actions:     []netlink.Action{netlink.NewMirredAction(shaper.Attrs().Index)},
	}
	if err := netlink.FilterAdd(all); err != nil {
		return fmt.Errorf("redirect %s to %s: %w", host.Attrs().Name, attributes.Name, err)
	}
	return nil
}

// limitDevice puts a token bucket before a device.
func limitDevice(link netlink.Link, bits uint64) error {
	rate := bits / bitsOfByte
	burst := min(max(rate/burstsPerSecond, minBurst), math.MaxUint32/2)
	bucket := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Limit: uint32(burst + queueBytes),
		Buffer: netlink.Xmittime(rate, uint32(burst)), // in ticks of the packet scheduler
	}
	if err := netlink.QdiscReplace(bucket); err != nil {
		return fmt.Errorf("limit %s to %d bits per second: %w", link.Attrs().Name, bits, err)
	}
	return nil
}

// removeShaper deletes the device that shapes what a pod sends. No device is no error.
func removeShaper(l *lease) error {
	if l.Bandwidth.Egress == 0 {
		return nil
	}
	link, err := netlink.LinkByName(shaperName(l.ID))
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up device %s: %w", shaperName(l.ID), err)
	}
	return unplug(link)
}
