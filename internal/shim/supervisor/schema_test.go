package supervisor

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestGoldenRecords reads records as version 0.1.0 wrote them, which had no checksum.
func TestGoldenRecords(t *testing.T) {
	dir := put(t, "c1", "testdata/record.v1.json", nil)
	r, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r.SandboxID != "p1" || r.Handler.Name != "runc" || !r.Handler.SystemdCgroup || !r.Terminal || r.Deadline != 30*time.Second ||
		r.State != stateRunning || r.PID != 4711 || r.Started != 123456 || r.LogDirectory != "/var/log/pods/web" || !r.StdinClosed {
		t.Errorf("record is %+v", r)
	}
	again, err := json.Marshal(r)
	if golden, readErr := os.ReadFile("testdata/record.v1.json"); err != nil || readErr != nil || !bytes.Equal(again, bytes.TrimSpace(golden)) {
		t.Errorf("record is written back as %s (%v, %v), want %s", again, err, readErr, golden)
	}
	e, err := loadExec(put(t, "e1", "testdata/exec.v1.json", nil))
	if want := (execRecord{ID: "e1", Session: "S", PID: 4712, Started: 123457}); err != nil || e != want {
		t.Errorf("record of an exec is %+v (%v), want %+v", e, err, want)
	}
}

// TestNewerRecordsAreRefused: the record of a newer version is an error and stays as it is; the supervisor sets its
// directory aside.
func TestNewerRecordsAreRefused(t *testing.T) {
	newer := func(text []byte) []byte {
		return bytes.Replace(text, []byte(`"version":1`), []byte(`"version":2`), 1)
	}
	dir := put(t, "c1", "testdata/record.v1.json", newer)
	file := filepath.Join(dir, recordFile)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := load(dir); err == nil {
		t.Errorf("record of a newer version is read as %+v", r)
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the newer record is %q (%v) now", after, err)
	}
}

// TestNewerHandoverIsRefused: a supervisor does not take over from a version whose handover it cannot read.
func TestNewerHandoverIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "handover")
	if err := os.WriteFile(file, []byte(`{"version":2,"lock":0,"rpc":0,"fds":0,"session":"S"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := readHandover(f); err == nil {
		t.Errorf("handover of a newer version is read as %+v", h)
	}
}

// put copies a golden file into a directory of a container or exec, with a change.
func put(t *testing.T, id, golden string, change func([]byte) []byte) string {
	t.Helper()
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		text = change(text)
	}
	dir := filepath.Join(t.TempDir(), id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, recordFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
