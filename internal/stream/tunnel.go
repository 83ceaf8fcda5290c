package stream

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"slices"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// tunnelProtocol is a WebSocket whose messages are the bytes of a SPDY
// connection.
const tunnelProtocol = spdy.HeaderSpdy31 + "+" + portforward.ProtocolV1Name

// serveTunnel accepts a WebSocket and lets serve believe that its connection
// was upgraded to SPDY.
func serveTunnel(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
	websocket.Server{
		Handshake: func(config *websocket.Config, _ *http.Request) error {
			if !slices.Contains(config.Protocol, tunnelProtocol) {
				return fmt.Errorf("subprotocols %q: want %q: %w", config.Protocol, tunnelProtocol, websocket.ErrBadWebSocketProtocol)
			}
			config.Protocol = []string{tunnelProtocol}
			return nil
		},
		Handler: func(conn *websocket.Conn) {
			conn.PayloadType = websocket.BinaryFrame
			inside := r.Clone(r.Context())
			inside.Header = http.Header{}
			inside.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			inside.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inside.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
			serve(&tunnelled{conn: conn, header: http.Header{}}, inside)
		},
	}.ServeHTTP(w, r)
}

// tunnelled is the response to a request that came through a tunnel. There is
// no HTTP inside: what matters is that the connection can be taken over.
type tunnelled struct {
	conn   *websocket.Conn
	header http.Header
}

// Header implements [http.ResponseWriter].
func (t *tunnelled) Header() http.Header { return t.header }

// WriteHeader implements [http.ResponseWriter]. The WebSocket's handshake was
// the answer.
func (*tunnelled) WriteHeader(int) {}

// Write implements [http.ResponseWriter]. A refusal has nowhere to go: the
// connection is closed after it, and the session's log line says why.
func (*tunnelled) Write(p []byte) (int, error) { return len(p), nil }

// Hijack implements [http.Hijacker].
func (t *tunnelled) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}
