package session

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// The words of the remote command protocol, version 4: one SPDY stream per
// standard stream, each opened by the client with its kind in a header.
const (
	protocolV4   = "v4.channel.k8s.io"
	kindHeader   = "streamType"
	kindError    = "error"
	kindStdin    = "stdin"
	kindStdout   = "stdout"
	kindStderr   = "stderr"
	kindResize   = "resize"
	upgradeSPDY  = spdy.HeaderSpdy31
	protocolHead = httpstream.HeaderProtocolVersion
)

type spdySession struct {
	conn    httpstream.Connection
	streams map[string]httpstream.Stream
}

func (c *spdySession) stdin() io.WriteCloser {
	if s, ok := c.streams[kindStdin]; ok {
		return s
	}
	return nil
}

func (c *spdySession) stdout() io.Reader { return c.reader(kindStdout) }
func (c *spdySession) stderr() io.Reader { return c.reader(kindStderr) }
func (c *spdySession) status() io.Reader { return c.reader(kindError) }

func (c *spdySession) reader(kind string) io.Reader {
	if s, ok := c.streams[kind]; ok {
		return s
	}
	return nil
}

func (c *spdySession) resize() io.Writer {
	if s, ok := c.streams[kindResize]; ok {
		return s
	}
	return nil
}

func (c *spdySession) close() error { return c.conn.Close() }

// dialSPDY opens a session over SPDY. An answer that is no upgrade gives
// errNoSPDY with what the server said.
func dialSPDY(ctx context.Context, u *url.URL, s Streams) (connection, error) {
	raw, err := dial(ctx, u, s.TLS)
	if err != nil {
		return nil, fmt.Errorf("connect to the streaming server: %w", err)
	}
	if err := upgrade(ctx, raw, u); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	conn, err := spdy.NewClientConnection(raw)
	if err != nil {
		return nil, fmt.Errorf("start SPDY: %w", err)
	}
	out := &spdySession{conn: conn, streams: map[string]httpstream.Stream{}}
	// The end of the context must not wait for a server that does not answer.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // the open stream reports it
	defer stop()
	for _, kind := range kinds(s) {
		stream, err := conn.CreateStream(http.Header{kindHeader: {kind}})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open the %s stream: %w", kind, err), conn.Close())
		}
		out.streams[kind] = stream
	}
	return out, nil
}

// kinds are the streams of a session in the order in which servers expect them.
func kinds(s Streams) []string {
	out := []string{kindError}
	if s.Stdin != nil {
		out = append(out, kindStdin)
	}
	if s.Stdout != nil {
		out = append(out, kindStdout)
	}
	if s.Stderr != nil && !s.TTY {
		out = append(out, kindStderr)
	}
	if s.TTY {
		out = append(out, kindResize) // servers wait for it even if no size ever comes
	}
	return out
}

func dial(ctx context.Context, u *url.URL, trust *tls.Config) (net.Conn, error) {
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	if u.Scheme == "https" {
		d := tls.Dialer{Config: trust}
		return d.DialContext(ctx, "tcp", host)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", host)
}

// upgrade asks the server to speak SPDY on the connection.
func upgrade(ctx context.Context, conn net.Conn, u *url.URL) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return fmt.Errorf("set deadline of the upgrade: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), http.NoBody)
	if err != nil {
		return fmt.Errorf("request SPDY upgrade: %w", err)
	}
	req.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	req.Header.Set(httpstream.HeaderUpgrade, upgradeSPDY)
	req.Header.Set(protocolHead, protocolV4)
	if err := req.Write(conn); err != nil {
		return fmt.Errorf("request SPDY upgrade: %w", err)
	}
	// The server says nothing more until a stream is opened, so no byte of
	// SPDY can be lost in this buffer.
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return fmt.Errorf("request SPDY upgrade: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return refusal(resp)
	}
	if got := resp.Header.Get(protocolHead); got != protocolV4 {
		return fmt.Errorf("%w: the server selected protocol %q", errNoSPDY, got)
	}
	return conn.SetDeadline(time.Time{})
}

// refusal is the error for an answer that is no upgrade. A plain HTTP error
// that is not about the protocol is final.
func refusal(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	err = errors.Join(err, resp.Body.Close())
	said := strings.TrimSpace(string(text))
	if said == "" {
		said = http.StatusText(resp.StatusCode)
	}
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusMethodNotAllowed,
		http.StatusNotImplemented, http.StatusUpgradeRequired:
		return errors.Join(fmt.Errorf("%w: %s", errNoSPDY, said), err)
	}
	return errors.Join(fmt.Errorf("the streaming server answered %s: %s", resp.Status, said), err)
}
