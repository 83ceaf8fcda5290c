package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/selinux"
	"github.com/berth-runtime/berth/internal/warning"
	"github.com/berth-runtime/berth/test/harness"
)

// TestUnsupportedRequestsAreAcceptedWithWarnings: a pod whose request this host cannot fully give runs, as with other
// runtimes. Its warnings are in the verbose status, in `berth inspect` and in the metrics, once in the log, and outlive the
// daemon.
func TestUnsupportedRequestsAreAcceptedWithWarnings(t *testing.T) {
	enabled := selinux.Enabled() // before the leak check: its library keeps /proc open for good
	address := freeAddress(t)
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) { c.Metrics.Address = address }})
	n.Pull()
	label := &runtimeapi.SELinuxOption{Level: "s0"}
	ofPod, want := "", "stop_signal"
	if !enabled {
		ofPod = "linux.security_context.selinux_options"
		want = ofPod + " " + want
	}
	p := n.RunPod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.SelinuxOptions = label })
	unsupported := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.SelinuxOptions, c.StopSignal = label, 999
	}
	a, b := p.Start([]string{"sleep", "1000"}, unsupported), p.Start([]string{"sleep", "1000"}, unsupported)
	check := func() {
		t.Helper()
		equal(t, "warnings of the pod", fields(podWarnings(t, n, p.ID)), ofPod)
		equal(t, "warnings of a container", fields(containerWarnings(t, n, a.ID)), want)
		equal(t, "warnings of the other container", fields(containerWarnings(t, n, b.ID)), want)
	}
	check()
	out, err := n.Berth(n.Context(), "inspect", a.ID)
	if err != nil {
		t.Fatal(err)
	}
	var shown struct {
		Info struct {
			Warnings warning.List `json:"warnings"`
		} `json:"info"`
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		t.Fatal(err)
	}
	equal(t, "warnings that berth inspect shows", fields(shown.Info.Warnings), want)
	for field := range strings.FieldsSeq(want) {
		if lines := linesWith(n.Log(), "unsupported request accepted", field); len(lines) != 1 {
			t.Errorf("the log names %s in %d lines, want one for the pod: %q", field, len(lines), lines)
		}
	}
	if line := `berth_unsupported_requests_total{field="stop_signal"} 2`; !strings.Contains(scrape(t, address), line) {
		t.Errorf("the metrics do not have %s", line)
	}
	n.KillDaemon()
	n.Ready()
	check()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func scrape(t *testing.T, address string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// linesWith are the lines that contain all words.
func linesWith(text string, words ...string) []string {
	var found []string
	for line := range strings.Lines(text) {
		if err := mentions(fmt.Errorf("%s", line), words...); err == nil {
			found = append(found, line)
		}
	}
	return found
}

// fields are the names of the fields, in one text.
func fields(list warning.List) string {
	var names []string
	for _, w := range list {
		names = append(names, w.Field)
	}
	return strings.Join(names, " ")
}

func podWarnings(t *testing.T, n *harness.Node, id string) warning.List {
	t.Helper()
	status, err := n.Runtime.PodSandboxStatus(n.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return warningsIn(t, status.GetInfo())
}

func containerWarnings(t *testing.T, n *harness.Node, id string) warning.List {
	t.Helper()
	status, err := n.Runtime.ContainerStatus(n.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return warningsIn(t, status.GetInfo())
}

func warningsIn(t *testing.T, info map[string]string) warning.List {
	t.Helper()
	var parsed struct {
		Warnings warning.List `json:"warnings"`
	}
	if err := json.Unmarshal([]byte(info["info"]), &parsed); err != nil {
		t.Fatal(err)
	}
	return parsed.Warnings
}
