package network

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// maxDumps is how often a dump is begun that other pods' devices, coming and
// going, keep interrupting.
const maxDumps = 10

// dump lists objects of the kernel. A list during which one of them changed may
// be incomplete, and is repeated.
func dump[T any](list func() ([]T, error)) (objects []T, err error) {
	for range maxDumps {
		if objects, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return objects, err
}
