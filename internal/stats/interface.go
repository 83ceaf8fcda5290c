package stats

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/internal/text"
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

// netDev lists the interfaces of the network namespace of the reading thread.
// Netlink would say the same, but only once no other network of the machine is
// being made or removed: its dumps take the kernel's one lock for all of them.
const netDev = "/proc/thread-self/net/dev"

const (
	// maxInterfaces bounds the interfaces of a pod, which a container with CAP_NET_ADMIN creates at
	// will, and maxNetDev what is read to find them.
	maxInterfaces = 64
	maxNetDev     = 64 << 10
	// firstInterface is what the first interface of a pod is called, whichever network made it.
	firstInterface = "eth0"
)

// ReadInterfaces counts what went through the interfaces of the network
// namespace that is pinned at path, without loopback. It returns at most 64 of
// them, eth0 among these. A name is as the kernel has it, but valid UTF-8.
func ReadInterfaces(path string) ([]Interface, error) {
	var content string
	err := namespace.Do(path, func() (err error) {
		content, err = readStart(netDev, maxNetDev)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read network interfaces: %w", err)
	}
	return parseInterfaces(content)
}

// parseInterfaces reads lines "eth0: 1 2 …": bytes, packets, errors, dropped
// and four more that were received, then the same that was sent. What does not
// look so is one of the two lines of titles.
func parseInterfaces(content string) ([]Interface, error) {
	var found []Interface
	r := &reader{}
	traffic := func(numbers []string) Traffic {
		return Traffic{
			Bytes: r.parse(netDev, numbers[0]), Packets: r.parse(netDev, numbers[1]),
			Errors: r.parse(netDev, numbers[2]), Dropped: r.parse(netDev, numbers[3]),
		}
	}
	for line := range strings.Lines(content) {
		// A name may have a colon in it, numbers have none.
		end := strings.LastIndexByte(line, ':')
		if end < 0 {
			continue
		}
		name, numbers := strings.TrimSpace(line[:end]), strings.Fields(line[end+1:])
		if name == "lo" || len(numbers) < 16 {
			continue
		}
		found = append(found, Interface{Name: text.Clean(name), Received: traffic(numbers[:8]), Sent: traffic(numbers[8:])})
	}
	if r.err != nil {
		return nil, fmt.Errorf("read network interfaces: %w", r.err)
	}
	if len(found) > maxInterfaces {
		slices.SortStableFunc(found, func(a, b Interface) int {
			return cmp.Compare(isOther(a), isOther(b))
		})
		found = found[:maxInterfaces]
	}
	return found, nil
}

// isOther is 0 for the first interface of a pod and 1 for the others.
func isOther(i Interface) int {
	if i.Name == firstInterface {
		return 0
	}
	return 1
}
