package session

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// wordsOfV5 is a server of version 5 of the protocol, which the Kubernetes
// project's own stream server does not speak: it echoes what it gets once it
// got the end of the stream.
func wordsOfV5(t *testing.T) http.Handler {
	t.Helper()
	upgrader := websocket.Upgrader{Subprotocols: []string{protocolV5}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !websocket.IsWebSocketUpgrade(r) {
			http.Error(w, "WebSocket only", http.StatusBadRequest)
			return
		}
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			t.Errorf("upgrade: %v", err)
			return
		}
		defer conn.Close()
		said := ""
		for {
			_, message, err := conn.ReadMessage()
			if err != nil {
				t.Errorf("the client left before it closed its input: %v", err)
				return
			}
			if message[0] == channelClose && message[1] == channelStdin {
				break
			}
			said += string(message[1:])
		}
		for _, answer := range []string{"\x01", "\x02ignored", "\x01" + said, "\xff\x01", "\x03" + `{"status":"Success"}`} {
			if err := conn.WriteMessage(websocket.BinaryMessage, []byte(answer)); err != nil {
				t.Errorf("answer: %v", err)
				return
			}
		}
	})
}

func TestWebSocketHalfClose(t *testing.T) {
	web := httptest.NewServer(wordsOfV5(t))
	defer web.Close()
	var out strings.Builder
	st := Streams{Stdin: io.NopCloser(strings.NewReader("hello")), Stdout: &out}
	locate := func(context.Context) (string, error) { return web.URL, nil }
	if err := Run(testContext(t), locate, st); err != nil {
		t.Fatal(err)
	}
	if out.String() != "hello" {
		t.Errorf("echoed %q, want hello", out.String())
	}
}

// A server that speaks neither says why, for both.
func TestNeitherProtocol(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "go away", http.StatusForbidden)
	}))
	defer web.Close()
	locate := func(context.Context) (string, error) { return web.URL, nil }
	err := Run(testContext(t), locate, Streams{Stdout: io.Discard})
	for _, want := range []string{"SPDY refused: go away", "open a WebSocket", "403"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want in it %s", err, want)
		}
	}
}
