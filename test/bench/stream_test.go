package bench

import (
	"io"
	"net/http"
	"net/url"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// BenchmarkStreams measures sessions of exec over each protocol: a small command, and the delivery of much output.
func BenchmarkStreams(b *testing.B) {
	n := harness.Start(b, harness.Options{})
	n.Pull()
	c := n.RunPod().Start([]string{"sleep", "1000"})
	var s steps
	for b.Loop() {
		for _, protocol := range []string{"spdy", "websocket"} {
			s.time(protocol+"-small", func() { stream(b, n, protocol, c.ID, "true") })
			s.time(protocol+"-16MiB", func() { stream(b, n, protocol, c.ID, "head", "-c", "16777216", "/dev/zero") })
		}
	}
	s.report(b)
}

// stream runs a command in a session.
func stream(b *testing.B, n *harness.Node, protocol, container string, command ...string) {
	b.Helper()
	answer, err := n.Runtime.Exec(n.Context(), &runtimeapi.ExecRequest{ContainerId: container, Cmd: command, Stdout: true})
	if err != nil {
		b.Fatal(err)
	}
	address, err := url.Parse(answer.GetUrl())
	if err != nil {
		b.Fatal(err)
	}
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, address)
	if protocol == "websocket" {
		executor, err = remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, answer.GetUrl())
	}
	if err != nil {
		b.Fatal(err)
	}
	if err := executor.StreamWithContext(n.Context(), remotecommand.StreamOptions{Stdout: io.Discard}); err != nil {
		b.Fatal(err)
	}
}
