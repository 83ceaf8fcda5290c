package conformance

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
)

var (
	passes = flag.String("passes", "", "passes of critest to run: runc, crun or shim-v2, each with what it adds, e.g. runc,crun:2:cni. "+
		"A number is how many specs run at a time; cni takes CNI plugins for the network; websocket streams over it, not SPDY")
	focus    = flag.String("focus", "", "run only the specs whose names match")
	prepared = flag.String("prepared", "", "directory in which Prepare has put critest and its images")
)

// TestCritest runs the whole suite against a fresh node for each pass that -passes names. It fails for every spec that
// fails, and for every one that is skipped without an excuse.
func TestCritest(t *testing.T) {
	if *passes == "" {
		t.Log("-passes names none, so there is nothing to do")
		return
	}
	im, s, err := ready(t)
	if err != nil {
		t.Fatal(err)
	}
	for words := range strings.SplitSeq(*passes, ",") {
		p, err := parsePass(words)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(words, func(t *testing.T) { runPass(t, s, im, p) })
	}
}

// ready returns the images and the suite. Images that are prepared are in the registry already.
func ready(t *testing.T) (images, suite, error) {
	if *prepared == "" {
		return build(t.Context(), "../..")
	}
	s, err := openPrepared(*prepared)
	return nil, s, err
}

// parsePass understands "crun:2:cni".
func parsePass(words string) (pass, error) {
	handler, more, _ := strings.Cut(words, ":")
	p := pass{handler: handler, processes: 1}
	for word := range strings.SplitSeq(more, ":") {
		number, err := strconv.Atoi(word)
		switch {
		case word == "":
		case word == "cni":
			p.cni = true
		case word == "websocket":
			p.websocket = true
		case err == nil && number > 0:
			p.processes = number
		default:
			return p, fmt.Errorf("the pass %q: %q is neither a number of processes nor cni nor websocket", words, word)
		}
	}
	return p, nil
}

// runPass starts a node, runs the suite against it and judges the report.
func runPass(t *testing.T, s suite, im images, p pass) {
	opts := harness.Options{Handler: p.handler, Configure: func(c *config.Config) {
		if p.handler == config.HandlerShimV2 {
			c.Runtime.Handlers[p.handler] = config.Handler{Type: config.HandlerShimV2, Path: "io.containerd.runc.v2"}
		}
	}}
	if p.cni {
		opts.Conflist = harness.PortmapList("1.0.0")
	}
	if *prepared != "" {
		opts.Registry.Dir = filepath.Join(*prepared, preparedRegistry)
	}
	n := harness.Start(t, opts)
	if err := im.push(t.Context(), n.Registry.Host); err != nil {
		t.Fatal(err)
	}
	if err := mirror(n.Config.Image.RegistryConfigDir, n.Registry.Host); err != nil {
		t.Fatal(err)
	}
	n.Ready()
	p.endpoint, p.focus, p.dir, p.tmp = n.Config.Listen, *focus, t.ArtifactDir(), filepath.Join(n.Dir(), "tmp")
	if err := os.Mkdir(p.tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	removeSegmentsLater(t)
	r, err := s.run(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("critest %s: %d passed, %d failed, %d skipped, %d not asked for, in %v", s.version,
		len(r.with(passed)), len(r.with(failed)), len(r.with(skipped)), len(r.with(left)), r.took.Round(time.Second))
	judge(t, r)
}

// mirror makes the node ask a registry here in place of those that critest names. The server is replaced as well as given
// a mirror, so that nothing is ever looked for elsewhere.
func mirror(certsDir, host string) error {
	text := fmt.Sprintf("server = %[1]q\n[host.%[1]q]\ncapabilities = [\"pull\", \"resolve\"]\n", "http://"+host)
	for _, name := range registries {
		dir := filepath.Join(certsDir, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// judge reports failures, and skips with their reasons.
func judge(t *testing.T, r *report) {
	if problem := r.problem(); problem != "" {
		t.Errorf("critest: %s", problem)
	}
	for _, s := range r.with(failed) {
		t.Errorf("FAILED: %s\n%s\n%s", s.name, s.message, s.output)
	}
	for _, s := range r.with(skipped) {
		e, err := excused(s)
		if err != nil {
			t.Errorf("SKIPPED: %s: %v", s.name, err)
			continue
		}
		t.Logf("skipped: %s: %s", s.name, e.why)
	}
}

// removeSegmentsLater removes the shared memory that critest leaves on the host: it makes a segment to look for it from
// a container.
func removeSegmentsLater(t *testing.T) {
	const size = 1 << 20 // ipcmk -M 1048576
	before := sharedMemory(t)
	t.Cleanup(func() {
		for id, bytes := range sharedMemory(t) {
			if _, old := before[id]; old || bytes != size {
				continue
			}
			if _, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil); err != nil {
				t.Errorf("remove the shared memory segment %d: %v", id, err)
			}
		}
	})
}

// sharedMemory returns the size of every System V segment.
func sharedMemory(t *testing.T) map[int]int {
	data, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]int{}
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n")[1:] {
		var key, id, mode, size int
		if _, err := fmt.Sscan(line, &key, &id, &mode, &size); err != nil {
			t.Fatalf("read %q: %v", line, err)
		}
		found[id] = size
	}
	return found
}
