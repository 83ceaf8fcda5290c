package wire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/berth-runtime/berth/internal/errcode"
)

const (
	// maxFDMessage bounds one message on the descriptor socket, maxFDText a request or a refusal in it.
	maxFDMessage = 1024
	maxFDText    = 512
	// maxFDs bounds the descriptors of one message.
	maxFDs = 8
	// fdTimeout bounds one exchange on the descriptor socket.
	fdTimeout = 10 * time.Second
)

// Versions of the protocol, as Hello answers them.
const (
	// NumberedAnswers: requests on the descriptor socket may be numbered, and then answers are.
	NumberedAnswers = 1
	// Protocol is the version that this program speaks.
	Protocol = NumberedAnswers
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

// FDConn is one end of the descriptor socket. A client asks, a server answers; one exchange at a
// time. Requests and answers carry a number, so that no answer is taken for that to another request.
type FDConn struct {
	mu       sync.Mutex
	conn     *net.UnixConn
	numbered bool // false for a server that does not number its answers
	last     uint64
	timeout  time.Duration // of one exchange
}

// errNotSent means that a message was not sent, and the connection is as it was.
var errNotSent = errors.New("message not sent")

// DialFD connects to the descriptor socket at path of a server that speaks a version of the protocol.
func DialFD(path string, protocol uint32) (*FDConn, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("connect to descriptor socket: %w", err)
	}
	return &FDConn{conn: conn, numbered: protocol >= NumberedAnswers, timeout: fdTimeout}, nil
}

// NewFDConn serves on an accepted connection.
func NewFDConn(conn *net.UnixConn) *FDConn { return &FDConn{conn: conn, timeout: fdTimeout} }

// Close ends the connection.
func (c *FDConn) Close() error { return c.conn.Close() }

// Put stages files under name. The caller keeps its own descriptors. A refusal is an [Error] and
// leaves the connection usable; any other error is net.ErrClosed.
func (c *FDConn) Put(name string, files Files) error {
	_, err := c.exchange("put "+name, files)
	if err != nil {
		return fmt.Errorf("hand over descriptors of %s: %w", name, err)
	}
	return nil
}

// Get fetches the files known under name. Errors are those of Put.
func (c *FDConn) Get(name string) (Files, error) {
	files, err := c.exchange("get "+name, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch descriptors of %s: %w", name, err)
	}
	return files, nil
}

// Drop closes what is staged under name, if anything is. Errors are those of Put.
func (c *FDConn) Drop(name string) error {
	_, err := c.exchange("drop "+name, nil)
	if err != nil {
		return fmt.Errorf("drop descriptors of %s: %w", name, err)
	}
	return nil
}

// exchange closes the connection when the answer is in doubt: it could still arrive and be taken
// for that to the next request.
func (c *FDConn) exchange(request string, files Files) (Files, error) {
	if len(request) > maxFDText {
		return nil, fmt.Errorf("request of %d bytes: at most %d: %w", len(request), maxFDText, errdefs.ErrInvalidArgument)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	number := ""
	if c.numbered {
		number = strconv.FormatUint(c.last, 10) + " "
	}
	if err := c.conn.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return nil, err
	}
	if err := c.send(number+request, files); errors.Is(err, errNotSent) {
		return nil, err
	} else if err != nil {
		return nil, c.distrust(err)
	}
	m, err := c.receive()
	if err != nil {
		return nil, c.distrust(err)
	}
	answer, found := strings.CutPrefix(m.text, number)
	if !found {
		m.files.Close()
		return nil, c.distrust(fmt.Errorf("answer %.20q is not that to request %d", m.text, c.last))
	}
	switch {
	case m.damage != nil:
		return nil, m.damage
	case answer != "ok":
		m.files.Close()
		return nil, parseRefusal(answer)
	}
	return m.files, nil
}

// distrust closes the connection after an error that leaves open what arrives next.
func (c *FDConn) distrust(err error) error {
	_ = c.conn.Close()
	return fmt.Errorf("descriptor connection closed: %w: %w", err, net.ErrClosed)
}

// refusal is the text of an error answer. Clients that do not number get no code.
func refusal(number string, err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", " ")
	text = text[:min(len(text), maxFDText)]
	if number == "" {
		return "error " + text
	}
	return fmt.Sprintf("error %d %s", errcode.Of(err), text)
}

func parseRefusal(answer string) error {
	text := strings.TrimPrefix(answer, "error ")
	if code, rest, found := strings.Cut(text, " "); found {
		if n, err := strconv.ParseUint(code, 10, 32); err == nil {
			return &Error{kind: errcode.Kind(codes.Code(n)), text: rest}
		}
	}
	return &Error{kind: errdefs.ErrUnknown, text: text}
}

// Answer reads one request and answers it with what handle returns. The files handed to handle are
// its own to close; those that it returns are closed after sending when done is not nil. A request
// that cannot be served is refused; an error means that the connection has ended.
func (c *FDConn) Answer(handle func(op, name string, files Files) (reply Files, done func(), err error)) error {
	m, err := c.receive()
	if err != nil {
		return err
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		m.files.Close()
		return err
	}
	number, request := "", m.text
	if first, rest, found := strings.Cut(m.text, " "); found && first != "" && strings.Trim(first, "0123456789") == "" {
		number, request = first+" ", rest
	}
	if m.damage != nil {
		return c.send(number+refusal(number, m.damage), nil)
	}
	op, name, _ := strings.Cut(request, " ")
	reply, done, err := handle(op, name, m.files)
	if done != nil {
		defer done()
	}
	if err == nil {
		if err = c.send(number+"ok", reply); !errors.Is(err, errNotSent) {
			return err
		}
	}
	return c.send(number+refusal(number, err), nil)
}

// send writes text and, behind a line feed, the kinds of the files that go with it.
func (c *FDConn) send(text string, files Files) error {
	if len(files) > maxFDs {
		return fmt.Errorf("send %d descriptors: at most %d: %w", len(files), maxFDs, errNotSent)
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
			return fmt.Errorf("send %s: %w: %w", kind, err, errNotSent)
		}
		closers = append(closers, release)
		kinds, fds = append(kinds, kind), append(fds, fd)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := c.conn.WriteMsgUnix([]byte(text+"\n"+strings.Join(kinds, ",")), oob, nil)
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

// message is one message of the descriptor socket.
type message struct {
	text  string
	files Files
	// damage tells why the files are missing: a process without free descriptors gets none.
	damage error
}

// receive reads one message. An error means that the connection has ended.
func (c *FDConn) receive() (message, error) {
	buf := make([]byte, maxFDMessage)
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return message{}, err
	}
	fds, err := parseRights(oob[:oobn])
	if n == 0 {
		closeAll(fds)
		return message{}, net.ErrClosed
	}
	text, list, found := strings.Cut(string(buf[:n]), "\n")
	var kinds []string
	if list != "" {
		kinds = strings.Split(list, ",")
	}
	if err != nil || !found || len(kinds) != len(fds) || flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		closeAll(fds)
		return message{text: text, damage: errors.Join(err,
			fmt.Errorf("received %d of %d descriptors: %w", len(fds), len(kinds), errdefs.ErrResourceExhausted))}, nil
	}
	files := Files{}
	for i, kind := range kinds {
		if old, twice := files[kind]; twice {
			_ = old.Close()
		}
		files[kind] = os.NewFile(uintptr(fds[i]), kind)
	}
	return message{text: text, files: files}, nil
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
