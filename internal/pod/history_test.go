package pod

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/privilege"
)

var rewrite = flag.Bool("rewrite", false, "write the histories in testdata from the outcomes")

// TestHistories plays the histories in testdata: each line is a request or an
// event, and the indented lines below it are all that is to be seen of it.
// `go test ./internal/pod -run TestHistories -rewrite` writes them again; the
// difference is to be reviewed as prose.
func TestHistories(t *testing.T) {
	privilege.Root(t)
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no histories in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { playHistory(t, file) })
	}
}

func playHistory(t *testing.T, file string) {
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	var got bytes.Buffer
	for scanner := bufio.NewScanner(bytes.NewReader(want)); scanner.Scan(); {
		line := scanner.Text()
		if strings.HasPrefix(line, "  ") {
			continue
		}
		fmt.Fprintln(&got, line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		for out := range strings.Lines(n.command(strings.Fields(line))) {
			fmt.Fprintf(&got, "  %s\n", strings.TrimRight(out, "\n"))
		}
	}
	n.finish()
	if *rewrite {
		if err := os.WriteFile(file, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got.String() != string(want) {
		t.Errorf("history %s\n--- got\n%s--- want\n%s", file, got.String(), want)
	}
}

// command performs one line of a history and returns what is seen of it.
func (n *node) command(words []string) string {
	name := ""
	if len(words) > 1 {
		name = words[1]
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	switch words[0] {
	case "fail", "hold", "heal":
		n.faults.set(words[0], strings.Join(words[1:], " "))
		return ""
	case "restart":
		n.crash(false)
		n.awaitExits()
		return n.awaitRest()
	case "reboot":
		n.reboot()
		return n.awaitRest()
	case "run":
		return n.result(n.run(ctx, name, words[2:]...))
	case "begin-run":
		return n.begin(name, func(ctx context.Context) error { return n.run(ctx, name) })
	case "begin-create":
		return n.begin(name, func(ctx context.Context) error { return n.create(ctx, name, words[2], words[3:]...) })
	case "begin-start":
		return n.begin(name, func(ctx context.Context) error { return n.engine.StartContainer(ctx, n.ids[name]) })
	case "begin-stop":
		return n.begin(name, func(ctx context.Context) error { return n.engine.StopSandbox(ctx, n.ids[name]) })
	case "begin-remove-container":
		return n.begin(name, func(ctx context.Context) error { return n.engine.RemoveContainer(ctx, n.ids[name]) })
	case "give-up":
		n.cancels[name]()
		return n.ended(name)
	case "ended":
		return n.ended(name)
	case "stop":
		return n.result(n.engine.StopSandbox(ctx, n.ids[name]))
	case "remove":
		return n.result(n.engine.RemoveSandbox(ctx, n.ids[name]))
	case "create":
		return n.result(n.create(ctx, name, words[2], words[3:]...))
	case "start":
		return n.result(n.engine.StartContainer(ctx, n.ids[name]))
	case "update":
		return n.result(n.engine.UpdateContainer(ctx, n.ids[name], &runtimeapi.LinuxContainerResources{CpuShares: 512}))
	case "begin-stop-container":
		return n.begin(name, func(ctx context.Context) error { return n.engine.StopContainer(ctx, n.ids[name], 0) })
	case "stop-unheard": // the signal cannot be sent, and the caller gives up
		ctx, giveUp := context.WithCancel(ctx)
		defer giveUp()
		n.shim.deaf = giveUp
		return n.result(n.engine.StopContainer(ctx, n.ids[name], time.Hour))
	case "stop-with-grace":
		return n.result(n.engine.StopContainer(ctx, n.ids[name], time.Hour))
	case "stop-container":
		return n.result(n.engine.StopContainer(ctx, n.ids[name], 0))
	case "remove-container":
		return n.result(n.engine.RemoveContainer(ctx, n.ids[name]))
	case "exit":
		n.shim.end(n.ids[name], words[2])
		n.awaitExits()
		return n.awaitRest()
	case "die": // unseen, the daemon is about to be restarted
		n.engine.stop()
		n.shim.end(n.ids[name], "137")
		return ""
	case "lose":
		return n.result(n.shim.Delete(ctx, n.ids[name]))
	case "damage":
		n.damage(name)
		return ""
	case "status":
		return n.status()
	case "plugin-events":
		return n.plugins.String()
	}
	n.t.Fatalf("history: unknown command %q", words)
	return ""
}

var (
	anyID    = regexp.MustCompile(`[0-9a-f]{64}`)
	shortIDs = regexp.MustCompile(`\b[0-9a-f]{13}\b`)
	anyTime  = regexp.MustCompile(`[0-9.]+(ms|µs|s)\b`)
)

// plain removes from an error what differs from run to run.
func plain(err error) string {
	text := anyID.ReplaceAllString(err.Error(), "ID")
	text = shortIDs.ReplaceAllString(text, "ID")
	return strings.ReplaceAll(anyTime.ReplaceAllString(text, "TIME"), "\n", "; ")
}

func (n *node) result(err error) string {
	if err != nil {
		return "error: " + plain(err)
	}
	return "ok"
}

// status tells everything that a client sees and everything that exists.
func (n *node) status() string {
	var b strings.Builder
	sandboxes, containers := n.engine.Sandboxes(Filter{}), n.engine.Containers(Filter{})
	slices.SortFunc(sandboxes, func(a, b *Sandbox) int { return strings.Compare(a.Config.Metadata.Name, b.Config.Metadata.Name) })
	slices.SortFunc(containers, func(a, b *Container) int {
		return strings.Compare(a.Config.Metadata.Name, b.Config.Metadata.Name)
	})
	for _, s := range sandboxes {
		fmt.Fprintf(&b, "sandbox %s %s", shortIDs.ReplaceAllString(s.Config.Metadata.Name, "ID"), strings.TrimPrefix(s.State.String(), "SANDBOX_"))
		if s.Problem != "" {
			fmt.Fprintf(&b, " problem: %s", plain(fmt.Errorf("%s", s.Problem)))
		}
		b.WriteByte('\n')
	}
	for _, c := range containers {
		fmt.Fprintf(&b, "container %s %s", shortIDs.ReplaceAllString(c.Config.Metadata.Name, "ID"), strings.TrimPrefix(c.State.String(), "CONTAINER_"))
		if c.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			fmt.Fprintf(&b, " code %d reason %s", c.ExitCode, c.Reason)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "exists: %s", strings.Join(n.exists(), " "))
	return b.String()
}
