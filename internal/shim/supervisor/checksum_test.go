package supervisor

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// TestAlteredRecordIsRefused changes each byte of a record in turn.
func TestAlteredRecordIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), recordFile)
	want := execRecord{ID: "exec", Session: "session", PID: 1234, Started: 5678}
	if err := save(path, want); err != nil {
		t.Fatal(err)
	}
	text, err := readRecord(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range text {
		altered := append([]byte(nil), text...)
		altered[i] ^= 1
		if err := os.WriteFile(path, altered, 0o600); err != nil {
			t.Fatal(err)
		}
		var got execRecord
		read, err := readRecord(path)
		if err == nil {
			err = json.Unmarshal(read, &got)
		}
		// A change within the checksum's member that makes it another member leaves the content as it was.
		if err == nil && got != want {
			t.Errorf("byte %d altered: record %q is read", i, altered)
		}
	}
}

// TestRecordsOfOtherVersionsAreRead reads a record without a checksum, and one with an unknown member.
func TestRecordsOfOtherVersionsAreRead(t *testing.T) {
	for name, text := range map[string][]byte{
		"older": []byte(`{"id":"exec","session":"s","pid":1,"started":2}`),
		"newer": addChecksum([]byte(`{"id":"exec","session":"s","pid":1,"started":2,"unknown":[3]}`)),
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, recordFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := loadExec(dir); err != nil || got != (execRecord{ID: "exec", Session: "s", PID: 1, Started: 2}) {
			t.Errorf("%s: record is %+v, %v", name, got, err)
		}
	}
}
