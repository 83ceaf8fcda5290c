package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/atomicfile"
	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/shim/crilog"
)

// Files in a container's directory.
const (
	recordFile = "record.json"
	pidFile    = "pid"
	spoolFile  = "spool"
	stdinFIFO  = "in"
	stdoutFIFO = "out"
	stderrFIFO = "err"
	execPrefix = "exec-"
)

// maxRecord bounds a record, written or read.
const maxRecord = 1 << 20

// recordVersion is the version of the record's format.
const recordVersion = 1

// States of a record. A starting container is undone by a successor unless its
// PID file says that the OCI runtime had got through.
const (
	stateStarting = "starting"
	stateRunning  = "running" // or ended: that is in the journal
)

// record is what a successor must know of a container. It is written before
// acting and replaced by rename, without fsync: no container outlives the kernel.
type record struct {
	Version   int                `json:"version"`
	ID        string             `json:"id"`
	SandboxID string             `json:"sandbox,omitempty"`
	Bundle    string             `json:"bundle,omitempty"`
	Handler   ociruntime.Handler `json:"handler"`
	Terminal  bool               `json:"terminal,omitempty"`
	Stdin     bool               `json:"stdin,omitempty"`
	StdinOnce bool               `json:"stdin_once,omitempty"`
	LogPath   string             `json:"log_path,omitempty"`
	// LogDirectory is what LogPath is below; containers may control what is in there.
	LogDirectory string        `json:"log_directory,omitempty"`
	LogLimit     int64         `json:"log_limit,omitempty"`
	Cgroup       string        `json:"cgroup,omitempty"`
	Deadline     time.Duration `json:"deadline"`
	Infra        bool          `json:"infra,omitempty"`
	// Sandboxed: it runs in the sandbox of the container SandboxID.
	Sandboxed bool `json:"sandboxed,omitempty"`
	// Restore is set for a container that goes on from a checkpoint.
	Restore *restoreFrom `json:"restore,omitempty"`
	// Label is the SELinux label of the FIFOs.
	Label string `json:"label,omitempty"`

	State       string `json:"state"`
	PID         int    `json:"pid,omitempty"`
	Started     uint64 `json:"started,omitempty"`
	StartedNano int64  `json:"started_at,omitempty"`
	LogInode    uint64 `json:"log_inode,omitempty"`
	StdinClosed bool   `json:"stdin_closed,omitempty"`
}

// logAt is where the log is.
func (r *record) logAt() crilog.Location { return crilog.At(r.LogDirectory, r.LogPath) }

// execRecord is what a successor must know of an exec.
type execRecord struct {
	ID      string `json:"id"`
	Session string `json:"session"`
	PID     int    `json:"pid"`
	Started uint64 `json:"started"`
}

// loadExec reads the record in the directory of an exec.
func loadExec(dir string) (execRecord, error) {
	var rec execRecord
	text, err := readRecord(filepath.Join(dir, recordFile))
	if err == nil {
		err = json.Unmarshal(text, &rec)
	}
	return rec, err
}

// save replaces the JSON file at path by value, which must encode as a JSON object with members,
// and a checksum.
func save(path string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	text = addChecksum(text)
	if len(text) > maxRecord {
		return fmt.Errorf("write %s: it has %d bytes, want at most %d: %w", filepath.Base(path), len(text), maxRecord, errdefs.ErrInvalidArgument)
	}
	return atomicfile.Write(path, text, 0o600)
}

// readRecord reads a file that save wrote, and verifies its checksum. A record of a version without
// checksums has none.
func readRecord(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err == nil && len(text) > maxRecord {
		err = fmt.Errorf("%s has more than %d bytes: %w", path, maxRecord, errdefs.ErrInternal)
	}
	if err == nil {
		err = verifyChecksum(text)
	}
	return text, errors.Join(err, f.Close())
}

// load reads a record.
func load(dir string) (record, error) {
	text, err := readRecord(filepath.Join(dir, recordFile))
	if err != nil {
		return record{}, fmt.Errorf("read record: %w", err)
	}
	return parseRecord(text, filepath.Base(dir))
}

func parseRecord(text []byte, id string) (record, error) {
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return record{}, fmt.Errorf("parse record: %w", err)
	}
	if r.Version != recordVersion || r.ID != id || r.State == stateRunning && r.PID <= 1 {
		return record{}, fmt.Errorf("parse record: version %d, ID %q, PID %d make no sense: %w", r.Version, r.ID, r.PID, errdefs.ErrInternal)
	}
	return r, nil
}

// remove removes a file that may not be there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// checkID refuses what would not be a plain name in a directory.
func checkID(field, id string) error {
	const maxID = 128
	if id == "" || id == "." || id == ".." || len(id) > maxID {
		return fmt.Errorf("%s %q is empty, a directory link or longer than %d: %w", field, id, maxID, errdefs.ErrInvalidArgument)
	}
	for _, r := range id {
		if r != '-' && r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return fmt.Errorf("%s %q holds %q: %w", field, id, r, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
