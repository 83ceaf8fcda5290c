package network

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestDump: a list that was interrupted is repeated, another failure is not, and there is an end to it.
func TestDump(t *testing.T) {
	other := errors.New("other")
	for _, c := range []struct {
		name    string
		answers []error // of one dump after the other, the last for ever
		want    error
		dumps   int
	}{
		{"whole", []error{nil}, nil, 1},
		{"interrupted_twice", []error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, nil}, nil, 3},
		{"refused", []error{other}, other, 1},
		{"never_whole", []error{netlink.ErrDumpInterrupted}, netlink.ErrDumpInterrupted, maxDumps},
	} {
		t.Run(c.name, func(t *testing.T) {
			dumps := 0
			objects, err := dump(func() ([]int, error) {
				dumps++
				return []int{dumps}, c.answers[min(dumps, len(c.answers))-1]
			})
			if !errors.Is(err, c.want) || dumps != c.dumps || objects[0] != c.dumps {
				t.Errorf("got %v and %v after %d dumps, want %v after %d", objects, err, dumps, c.want, c.dumps)
			}
		})
	}
}
