package stats

import (
	"fmt"
	"strings"

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

// netDev lists the interfaces of the network namespace of whoever reads it.
// Netlink would say the same, but only once no other network of the machine is
// being made or removed: its dumps take the kernel's one lock for all of them.
const netDev = "/proc/thread-self/net/dev"

// ReadInterfaces counts what went through the interfaces of the network
// namespace that is pinned at path, without loopback.
func ReadInterfaces(path string) ([]Interface, error) {
	var text string
	err := namespace.Do(path, func() (err error) {
		text, err = readFile(netDev)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read network interfaces: %w", err)
	}
	return parseInterfaces(text)
}

// parseInterfaces reads lines "eth0: 1 2 …": bytes, packets, errors, dropped
// and four more that were received, then the same that was sent. What does not
// look so is one of the two lines of titles.
func parseInterfaces(text string) ([]Interface, error) {
	var found []Interface
	r := &reader{}
	traffic := func(numbers []string) Traffic {
		return Traffic{
			Bytes: r.parse(netDev, numbers[0]), Packets: r.parse(netDev, numbers[1]),
			Errors: r.parse(netDev, numbers[2]), Dropped: r.parse(netDev, numbers[3]),
		}
	}
	for line := range strings.Lines(text) {
		// A name may have a colon in it, numbers have none.
		end := strings.LastIndexByte(line, ':')
		if end < 0 {
			continue
		}
		name, numbers := strings.TrimSpace(line[:end]), strings.Fields(line[end+1:])
		if name == "lo" || len(numbers) < 16 {
			continue
		}
		found = append(found, Interface{Name: name, Received: traffic(numbers[:8]), Sent: traffic(numbers[8:])})
	}
	if r.err != nil {
		return nil, fmt.Errorf("read network interfaces: %w", r.err)
	}
	return found, nil
}
