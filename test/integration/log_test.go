package integration

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestLogFormat: every line has its time in nanoseconds, its stream and its tag; long ones are split at 16 KiB.
func TestLogFormat(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		c := n.RunPod().Start([]string{"sh", "-c", "echo out; echo err >&2; head -c 20000 /dev/zero | tr '\\0' x; echo; printf end"})
		c.Exited()
		n.Eventually("the log is complete", func() error { return logHas(c, "stdout P end") })
		data, err := os.ReadFile(c.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		stamp := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) (stdout|stderr) [FP] `)
		for line := range strings.Lines(string(data)) {
			if !stamp.MatchString(line) {
				t.Errorf("log line begins %.60q, want time, stream and tag", line)
			}
		}
		lines := c.LogLines()
		for _, want := range []string{"stdout F out", "stderr F err", "stdout P " + strings.Repeat("x", 16<<10), "stdout F " + strings.Repeat("x", 20000-16<<10)} {
			if !slices.Contains(lines, want) {
				t.Errorf("log has no line %.40q of %d bytes", want, len(want))
			}
		}
	})
}

// TestReopenLog: after the rename the new file is there at once, and of a thousand lines written meanwhile none is lost.
func TestReopenLog(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	c := n.RunPod().Start([]string{"sh", "-c", "i=0; while [ $i -lt 1000 ]; do echo line $i; i=$((i+1)); usleep 500; done; sleep 1000"})
	var files []string
	for i := range 5 {
		old := fmt.Sprintf("%s.%d", c.LogFile(), i)
		if err := os.Rename(c.LogFile(), old); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Runtime.ReopenContainerLog(n.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID}); err != nil {
			t.Fatalf("reopen the log: %v", err)
		}
		if _, err := os.Stat(c.LogFile()); err != nil {
			t.Fatalf("the new log after the call: %v", err)
		}
		files = append(files, old)
	}
	files = append(files, c.LogFile())
	n.Eventually("the last line is in the log", func() error { return logHas(c, "stdout F line 999") })
	next := 0
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if !strings.HasSuffix(line, fmt.Sprintf(" stdout F line %d\n", next)) {
				t.Fatalf("%s has %q, want line %d", f, line, next)
			}
			next++
		}
	}
	equal(t, "number of lines", next, 1000)
}

// TestReopenFails: kubelet renames back after an error, so an error must not leave a new file.
func TestReopenFails(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	c := p.Start([]string{"true"})
	c.Exited()
	if err := os.Rename(c.LogFile(), c.LogFile()+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Runtime.ReopenContainerLog(n.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID}); err == nil {
		t.Error("reopening the log of an exited container succeeds, want an error")
	}
	if _, err := os.Stat(c.LogFile()); !os.IsNotExist(err) {
		t.Errorf("the log after the failed call: %v, want none", err)
	}
}

// TestChattyContainer: the log keeps up with a container that writes as fast as it can, and loses nothing.
func TestChattyContainer(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	c := n.RunPod().Start([]string{"seq", "1", "200000"})
	c.Exited()
	n.Eventually("the log is complete", func() error { return logHas(c, "stdout F 200000") })
	lines := c.LogLines()
	equal(t, "number of lines", len(lines), 200000)
	for i, l := range lines {
		if l != fmt.Sprintf("stdout F %d", i+1) {
			t.Fatalf("line %d is %q", i+1, l)
		}
	}
	if s := c.Status(); time.Unix(0, s.GetFinishedAt()).Before(time.Unix(0, s.GetStartedAt())) {
		t.Errorf("the container ended at %d and started at %d", s.GetFinishedAt(), s.GetStartedAt())
	}
}
