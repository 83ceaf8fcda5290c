package crilog

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// idlePeekers bounds the scratch pipes that are kept for the next use.
const idlePeekers = 4

// peekers are scratch pipes: a FIFO is looked into by duplicating what is in it.
var peekers = make(chan *peeker, idlePeekers)

type peeker struct{ r, w int }

func getPeeker() (*peeker, error) {
	select {
	case p := <-peekers:
		return p, nil
	default:
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make scratch pipe: %w", err)
	}
	SizeFIFO(fds[1])
	return &peeker{r: fds[0], w: fds[1]}, nil
}

// put keeps an empty scratch pipe, or closes it.
func (p *peeker) put(empty bool) {
	if empty {
		select {
		case peekers <- p:
			return
		default:
		}
	}
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

// peek reads what is in the FIFO fd, up to the length of buf, and leaves it
// there. The error is io.EOF when it is empty and no writer is left, EAGAIN when
// it is empty.
func peek(fd int, buf []byte) (int, error) {
	p, err := getPeeker()
	if err != nil {
		return 0, err
	}
	there, err := tee(fd, p.w, len(buf))
	if err != nil || there == 0 {
		p.put(true)
		if err == nil {
			err = io.EOF
		}
		return 0, err
	}
	n := 0
	for n < there && err == nil {
		var got int
		got, err = read(p.r, buf[n:there])
		n += got
	}
	p.put(err == nil)
	return n, err
}

func tee(from, to, length int) (int, error) {
	for {
		n, err := unix.Tee(from, to, length, unix.SPLICE_F_NONBLOCK)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			err = os.NewSyscallError("tee", err)
		}
		return int(max(n, 0)), err
	}
}
