package wire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFDMessage bounds one message on the descriptor socket.
	maxFDMessage = 1024
	// maxFDs bounds the descriptors of one message.
	maxFDs = 8
	// fdTimeout bounds one exchange on the descriptor socket.
	fdTimeout = 10 * time.Second
)

// Kinds of descriptors which travel.
const (
	Pidfd   = "pidfd"
	Stdin   = "stdin"
	Stdout  = "stdout"
	Stderr  = "stderr"
	Console = "console"
)

// Files are descriptors by kind.
type Files map[string]*os.File

// Close closes all of them.
func (f Files) Close() {
	for _, file := range f {
		_ = file.Close()
	}
}

// FDConn is one end of the descriptor socket. A client asks, a server answers;
// one exchange at a time.
type FDConn struct {
	mu   sync.Mutex
	conn *net.UnixConn
}

// DialFD connects to the descriptor socket at path.
func DialFD(path string) (*FDConn, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("connect to descriptor socket: %w", err)
	}
	return &FDConn{conn: conn}, nil
}

// NewFDConn serves on an accepted connection.
func NewFDConn(conn *net.UnixConn) *FDConn { return &FDConn{conn: conn} }

// Close ends the connection.
func (c *FDConn) Close() error { return c.conn.Close() }

// Put deposits files under name. The caller keeps its own descriptors.
func (c *FDConn) Put(name string, files Files) error {
	_, err := c.exchange("put "+name, files)
	if err != nil {
		return fmt.Errorf("hand over descriptors of %s: %w", name, err)
	}
	return nil
}

// Get fetches the files known under name.
func (c *FDConn) Get(name string) (Files, error) {
	files, err := c.exchange("get "+name, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch descriptors of %s: %w", name, err)
	}
	return files, nil
}

func (c *FDConn) exchange(request string, files Files) (Files, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetDeadline(time.Now().Add(fdTimeout)); err != nil {
		return nil, err
	}
	if err := c.send(request, files); err != nil {
		return nil, err
	}
	reply, got, err := c.receive()
	if err != nil {
		return nil, err
	}
	if text, refused := strings.CutPrefix(reply, "error "); refused {
		got.Close()
		return nil, errors.New(text)
	}
	return got, nil
}

// Answer reads one request and answers it with what handle returns. The files
// handed to handle are its own to close; those that it returns are closed after
// sending when done is not nil.
func (c *FDConn) Answer(handle func(op, name string, files Files) (reply Files, done func(), err error)) error {
	request, files, err := c.receive()
	if err != nil {
		return err
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(fdTimeout)); err != nil {
		files.Close()
		return err
	}
	op, name, _ := strings.Cut(request, " ")
	reply, done, err := handle(op, name, files)
	if done != nil {
		defer done()
	}
	if err != nil {
		return c.send("error "+err.Error(), nil)
	}
	return c.send("ok", reply)
}

// send writes text and, behind a line feed, the kinds of the files that go with it.
func (c *FDConn) send(text string, files Files) error {
	if len(files) > maxFDs {
		return fmt.Errorf("send %d descriptors: at most %d", len(files), maxFDs)
	}
	kinds := make([]string, 0, len(files))
	fds := make([]int, 0, len(files))
	var closers []func()
	defer func() {
		for _, release := range closers {
			release()
		}
	}()
	for kind, file := range files {
		fd, release, err := borrow(file)
		if err != nil {
			return fmt.Errorf("send %s: %w", kind, err)
		}
		closers = append(closers, release)
		kinds, fds = append(kinds, kind), append(fds, fd)
	}
	if len(text) > maxFDMessage/2 {
		text = text[:maxFDMessage/2]
	}
	message := strings.ReplaceAll(text, "\n", " ") + "\n" + strings.Join(kinds, ",")
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := c.conn.WriteMsgUnix([]byte(message), oob, nil)
	return err
}

// borrow returns the descriptor of f without changing its blocking mode, which
// File.Fd would do, and a function that ends the loan.
func borrow(f *os.File) (int, func(), error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, nil, err
	}
	dup := -1
	var dupErr error
	if err := raw.Control(func(fd uintptr) {
		dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return -1, nil, err
	}
	if dupErr != nil {
		return -1, nil, dupErr
	}
	return dup, func() { _ = unix.Close(dup) }, nil
}

// Dup returns a second descriptor of f's open file.
func Dup(f *os.File) (*os.File, error) {
	fd, _, err := borrow(f)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor of %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (c *FDConn) receive() (string, Files, error) {
	buf := make([]byte, maxFDMessage)
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return "", nil, err
	}
	fds, err := parseRights(oob[:oobn])
	if err != nil {
		return "", nil, err
	}
	if n == 0 {
		closeAll(fds)
		return "", nil, net.ErrClosed
	}
	text, list, found := strings.Cut(string(buf[:n]), "\n")
	var kinds []string
	if list != "" {
		kinds = strings.Split(list, ",")
	}
	if !found || len(kinds) != len(fds) || flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		closeAll(fds)
		return "", nil, fmt.Errorf("malformed message with %d descriptors", len(fds))
	}
	files := Files{}
	for i, kind := range kinds {
		if old, twice := files[kind]; twice {
			_ = old.Close()
		}
		files[kind] = os.NewFile(uintptr(fds[i]), kind)
	}
	return text, files, nil
}

// parseRights returns the descriptors in a control message. The kernel set
// close-on-exec: net reads with MSG_CMSG_CLOEXEC.
func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var fds []int
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil && !errors.Is(err, syscall.EINVAL) {
			closeAll(fds)
			return nil, fmt.Errorf("parse descriptors: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
