package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// The words of the remote command protocol over WebSocket: binary messages
// whose first byte is the channel. Version 5 adds a message that closes one.
const (
	protocolV5 = "v5.channel.k8s.io"

	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
	channelError  = 3
	channelResize = 4
	channelClose  = 255

	// writeTimeout bounds how long a message may wait for the server.
	writeTimeout = 60 * time.Second
)

type webSocketSession struct {
	conn  *websocket.Conn
	kinds map[string]bool

	// pipes carry what arrives to the readers of the channels.
	pipes map[byte]*io.PipeReader
	into  map[byte]*io.PipeWriter
	// done is closed when nothing arrives any more.
	done chan struct{}

	mu sync.Mutex // guards writes to conn
}

// dialWebSocket opens a session over WebSocket.
func dialWebSocket(ctx context.Context, u *url.URL, s Streams) (connection, error) {
	target := *u
	target.Scheme = map[string]string{"http": "ws", "https": "wss"}[u.Scheme]
	d := websocket.Dialer{
		Subprotocols:   []string{protocolV5, protocolV4},
		NetDialContext: (&net.Dialer{}).DialContext, TLSClientConfig: s.TLS,
	}
	conn, resp, err := d.DialContext(ctx, target.String(), nil)
	if err != nil {
		return nil, webSocketError(resp, err)
	}
	c := &webSocketSession{
		conn: conn, kinds: map[string]bool{}, done: make(chan struct{}),
		pipes: map[byte]*io.PipeReader{}, into: map[byte]*io.PipeWriter{},
	}
	for _, kind := range kinds(s) {
		c.kinds[kind] = true
	}
	for _, channel := range []byte{channelStdout, channelStderr, channelError} {
		c.pipes[channel], c.into[channel] = io.Pipe()
	}
	go c.receive()
	return c, nil
}

func webSocketError(resp *http.Response, err error) error {
	err = fmt.Errorf("open a WebSocket: %w", err)
	if resp == nil {
		return err
	}
	text, readErr := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	return errors.Join(fmt.Errorf("%w: %s %s", err, resp.Status, text), readErr, resp.Body.Close())
}

func (c *webSocketSession) stdin() io.WriteCloser {
	if !c.kinds[kindStdin] {
		return nil
	}
	return &channelWriter{c: c, channel: channelStdin}
}

func (c *webSocketSession) stdout() io.Reader { return c.reader(kindStdout, channelStdout) }
func (c *webSocketSession) stderr() io.Reader { return c.reader(kindStderr, channelStderr) }
func (c *webSocketSession) status() io.Reader { return c.pipes[channelError] }

func (c *webSocketSession) reader(kind string, channel byte) io.Reader {
	if !c.kinds[kind] {
		return nil
	}
	return c.pipes[channel]
}

func (c *webSocketSession) resize() io.Writer {
	if !c.kinds[kindResize] {
		return nil
	}
	return &channelWriter{c: c, channel: channelResize}
}

func (c *webSocketSession) close() error {
	err := c.conn.Close()
	for _, r := range c.pipes {
		_ = r.Close() // always nil; frees receive if this channel has no reader
	}
	<-c.done
	return err
}

// receive hands out what arrives until the connection ends.
func (c *webSocketSession) receive() {
	defer close(c.done)
	var end error
	for {
		kind, message, err := c.conn.ReadMessage()
		if err != nil {
			end = err
			break
		}
		if kind != websocket.BinaryMessage || len(message) == 0 {
			continue
		}
		if message[0] == channelClose && len(message) == 2 {
			if w := c.into[message[1]]; w != nil {
				_ = w.Close() // always nil
			}
			continue
		}
		w := c.into[message[0]]
		if w == nil || len(message) == 1 || !c.wanted(message[0]) {
			continue // servers open each channel with an empty message
		}
		if _, err := w.Write(message[1:]); err != nil {
			end = err
			break
		}
		if message[0] == channelError {
			break // the status is the last thing said
		}
	}
	if websocket.IsCloseError(end, websocket.CloseNormalClosure) {
		end = nil
	}
	for _, w := range c.into {
		_ = w.CloseWithError(end) // always nil
	}
}

func (c *webSocketSession) wanted(channel byte) bool {
	switch channel {
	case channelStdout:
		return c.kinds[kindStdout]
	case channelStderr:
		return c.kinds[kindStderr]
	}
	return true
}

// channelWriter sends to one channel.
type channelWriter struct {
	c       *webSocketSession
	channel byte
}

func (w *channelWriter) Write(p []byte) (int, error) {
	if err := w.c.send(append([]byte{w.channel}, p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close tells the far side that nothing more comes. Before version 5 there is
// no way to say so.
func (w *channelWriter) Close() error {
	if w.c.conn.Subprotocol() != protocolV5 {
		return nil
	}
	return w.c.send([]byte{channelClose, w.channel})
}

func (c *webSocketSession) send(message []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	return c.conn.WriteMessage(websocket.BinaryMessage, message)
}
