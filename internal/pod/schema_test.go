package pod

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/berth-runtime/berth/internal/pod/store"
)

// TestNewerRecordsAreLeftUntouched opens an engine over a record of a newer version, of each kind.
func TestNewerRecordsAreLeftUntouched(t *testing.T) {
	for name, file := range map[string]func(n *node) string{
		"sandbox":   func(n *node) string { return n.engine.store.SandboxFile(n.ids["pod"]) },
		"container": func(n *node) string { return n.engine.store.ContainerFile(n.ids["pod"], n.ids["one"]) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.started("pod", "one")
			path := file(n)
			n.end(false)
			old, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			newer := bytes.Replace(old, []byte(`"schema":1`), []byte(`"schema":2`), 1)
			if err := os.WriteFile(path, newer, 0o600); err != nil {
				t.Fatal(err)
			}
			before := n.exists()
			n.shim.connect()
			if _, err := Open(t.Context(), n.opts); !errors.Is(err, store.ErrNewer) {
				t.Fatalf("open over a newer record: %v, want %v", err, store.ErrNewer)
			}
			if after := n.exists(); !slices.Equal(after, before) {
				t.Errorf("after the refusal there is %v, before it %v", after, before)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, newer) {
				t.Errorf("the newer record was changed to %q (%v)", now, err)
			}
			if err := os.WriteFile(path, old, 0o600); err != nil {
				t.Fatal(err)
			}
			n.open()
			n.finish()
		})
	}
}

// TestGoldenRecords reads records of schema 1 as version 0.1.0 wrote them, and writes them back.
func TestGoldenRecords(t *testing.T) {
	var sandbox sandboxRecord
	golden(t, "sandbox.schema1.json", &sandbox)
	if m := sandbox.Config.M.GetMetadata(); m.GetName() != "web" || m.GetUid() != "uid-web" || len(sandbox.IPs) != 2 || sandbox.Network == nil ||
		sandbox.NetNS == "" || sandbox.PID != 4242 || !sandbox.Listed || !sandbox.OwnsParent || sandbox.CreatedAt.IsZero() || len(sandbox.Warnings) != 1 {
		t.Errorf("sandbox is %+v", sandbox)
	}
	if _, err := sandboxSteps.Load(sandbox.Machine); err != nil {
		t.Errorf("load state of the sandbox: %v", err)
	}
	var container containerRecord
	golden(t, "container.schema1.json", &container)
	if container.Exit == nil || container.Exit.Code != 137 || container.Config.M.GetCommand()[0] != "sleep" || container.LogPath == "" || container.PID != 4711 ||
		container.FinishedAt.Before(container.StartedAt) || container.StopSignal != "SIGTERM" || container.Resources.M.GetMemoryLimitInBytes() != 64<<20 {
		t.Errorf("container is %+v", container)
	}
	if _, err := containerSteps.Load(container.Machine); err != nil {
		t.Errorf("load state of the container: %v", err)
	}
}

// golden reads a record, which must be written back with the same content.
func golden(t *testing.T, name string, record any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "records", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Decode(text, record); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	again, err := store.Encode(record)
	if err != nil {
		t.Fatal(err)
	}
	var want, got struct{ Record any }
	if err := errors.Join(json.Unmarshal(text, &want), json.Unmarshal(again, &got)); err != nil {
		t.Fatal(err)
	}
	wantText, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if gotText, err := json.Marshal(got); err != nil || !bytes.Equal(gotText, wantText) {
		t.Errorf("%s is written back as\n%s\nwant\n%s\n%v", name, gotText, wantText, err)
	}
}
