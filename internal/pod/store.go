package pod

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/atomicfile"
)

// schema is the version of the records that this code writes. A record of
// another version is set aside like a damaged one.
const schema = 1

// maxRecord bounds a record file, written or read: a damaged one cannot exhaust memory.
const maxRecord = 8 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged marks a record that is torn, altered or of an unknown version.
var errDamaged = errors.New("record is damaged")

// envelope is what a record file holds.
type envelope struct {
	Schema int             `json:"schema"`
	CRC32C string          `json:"crc32c"`
	Record json.RawMessage `json:"record"`
}

// encodeRecord wraps a record with its version and checksum.
func encodeRecord(record any) ([]byte, error) {
	raw, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	sum := fmt.Sprintf("%08x", crc32.Checksum(raw, castagnoli))
	return json.Marshal(envelope{Schema: schema, CRC32C: sum, Record: raw})
}

// decodeRecord is the inverse of encodeRecord. An error wraps errDamaged.
func decodeRecord(data []byte, record any) error {
	var env envelope
	if err := json.Unmarshal(data, &env); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	if env.Schema != schema {
		return fmt.Errorf("%w: schema %d, this version reads %d", errDamaged, env.Schema, schema)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, env.Record); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	if sum := fmt.Sprintf("%08x", crc32.Checksum(compact.Bytes(), castagnoli)); sum != env.CRC32C {
		return fmt.Errorf("%w: checksum %s, written was %s", errDamaged, sum, env.CRC32C)
	}
	if err := json.Unmarshal(env.Record, record); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return nil
}

// store keeps records as files below <root>/pods. It does not sync: after a
// power loss no container lives, and a torn file is told by its checksum.
type store struct {
	root string
}

func (s store) sandboxDir(id string) string { return filepath.Join(s.root, "pods", id) }

func (s store) sandboxFile(id string) string { return filepath.Join(s.sandboxDir(id), "pod.json") }

func (s store) filesDir(id string) string { return filepath.Join(s.sandboxDir(id), "files") }

func (s store) containersDir(sandboxID string) string {
	return filepath.Join(s.sandboxDir(sandboxID), "containers")
}

func (s store) containerFile(sandboxID, id string) string {
	return filepath.Join(s.containersDir(sandboxID), id+".json")
}

// write replaces the file by rename: readers and crashes see the old or the
// new record, never a mixture.
func (s store) write(file string, record any) error {
	data, err := encodeRecord(record)
	if err != nil {
		return err
	}
	if len(data) > maxRecord {
		return fmt.Errorf("write record: it has %d bytes, want at most %d: the request is too large: %w", len(data), maxRecord, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("make directory for record: %w", err)
	}
	if err := atomicfile.Write(file, data, 0o600); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// read reads one record. An error wraps errDamaged or is one of the file system.
func (s store) read(file string, record any) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if info.Size() > maxRecord {
		return fmt.Errorf("%w: %d bytes, at most %d are read", errDamaged, info.Size(), maxRecord)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return decodeRecord(data, record)
}

// quarantine moves a damaged record aside, where a person may look at it until
// the object is removed.
func (s store) quarantine(file string) error {
	err := os.Rename(file, file+".damaged")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// removeSandbox removes everything written about a sandbox.
func (s store) removeSandbox(id string) error { return os.RemoveAll(s.sandboxDir(id)) }

// removeContainer removes everything written about a container.
func (s store) removeContainer(sandboxID, id string) error {
	file := s.containerFile(sandboxID, id)
	return errors.Join(removeFile(file), removeFile(file+".damaged"), removeFile(atomicfile.Temporary(file)))
}

// sandboxIDs lists the sandboxes of which anything is written.
func (s store) sandboxIDs() ([]string, error) {
	return s.names(filepath.Join(s.root, "pods"), func(e fs.DirEntry) (string, bool) {
		return e.Name(), e.IsDir() && validID(e.Name())
	})
}

// containerIDs lists the containers of which anything is written.
func (s store) containerIDs(sandboxID string) ([]string, error) {
	seen := map[string]bool{}
	return s.names(s.containersDir(sandboxID), func(e fs.DirEntry) (string, bool) {
		name := e.Name()
		if len(name) < idLength || !validID(name[:idLength]) || seen[name[:idLength]] {
			return "", false
		}
		seen[name[:idLength]] = true
		return name[:idLength], true
	})
}

func (s store) names(dir string, pick func(fs.DirEntry) (string, bool)) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := pick(e); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// removeFile removes a file that may be gone already.
func removeFile(file string) error {
	err := os.Remove(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
