package stats

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"

	"github.com/berth-runtime/berth/internal/namespace"
)

// Interface is the traffic of one network interface.
type Interface struct {
	Name           string
	Received, Sent Traffic
}

// Traffic counts in one direction.
type Traffic struct {
	Bytes, Packets, Errors, Dropped uint64
}

// ReadInterfaces counts what went through the interfaces of the network
// namespace that is pinned at path, without loopback.
func ReadInterfaces(path string) ([]Interface, error) {
	var found []Interface
	err := namespace.Do(path, func() error {
		links, err := netlink.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
		for _, link := range links {
			a := link.Attrs()
			if a.Flags&net.FlagLoopback != 0 || a.Statistics == nil {
				continue
			}
			s := a.Statistics
			found = append(found, Interface{
				Name:     a.Name,
				Received: Traffic{Bytes: s.RxBytes, Packets: s.RxPackets, Errors: s.RxErrors, Dropped: s.RxDropped},
				Sent:     Traffic{Bytes: s.TxBytes, Packets: s.TxPackets, Errors: s.TxErrors, Dropped: s.TxDropped},
			})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read network interfaces: %w", err)
	}
	return found, nil
}
