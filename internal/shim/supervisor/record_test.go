package supervisor

import (
	"encoding/json"
	"testing"

	"github.com/containerd/errdefs"
)

func TestRecordComesBack(t *testing.T) {
	want := record{Version: recordVersion, ID: "c", Bundle: "/b", State: stateRunning, PID: 42, Started: 7, StdinOnce: true}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseRecord(text, "c")
	if err != nil || got.PID != want.PID || got.Started != want.Started || !got.StdinOnce {
		t.Errorf("got %+v %v", got, err)
	}
	if _, err := parseRecord(text, "other"); err == nil {
		t.Error("a record in another container's directory is accepted")
	}
}

func TestIDsAreNames(t *testing.T) {
	for _, id := range []string{"", ".", "..", "a/b", "a b", "ä", "a\x00"} {
		if err := checkID("ID", id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %v", id, err)
		}
	}
	if err := checkID("ID", "0123abcDEF-_."); err != nil {
		t.Error(err)
	}
}

// FuzzParseRecord: a damaged record is refused or makes sense, and never panics.
func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"c","state":"running","pid":42}`))
	f.Add([]byte(`{"version":1,"id":"c","state":"running","pid":-1}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if r, err := parseRecord(text, "c"); err == nil && (r.ID != "c" || r.State == stateRunning && r.PID <= 1) {
			t.Errorf("accepted %+v", r)
		}
	})
}
