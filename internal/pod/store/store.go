// Package store keeps records of pods and containers as files below <root>/pods.
//
// Records are not synced: after a power loss no container runs, and a torn file is found by its
// checksum.
package store

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

// Schema is the version of the records that this code writes. A change that an older version may
// ignore, such as a new member, keeps it.
const Schema = 1

// maxRecord bounds a record file in bytes, written or read: a damaged one cannot exhaust memory.
const maxRecord = 8 << 20

// damagedSuffix ends the name of a damaged record that was moved aside.
const damagedSuffix = ".damaged"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	// ErrDamaged marks a record that is torn or altered.
	ErrDamaged = errors.New("record is damaged")
	// ErrNewer marks a record that a newer version of Berth wrote. It must be left untouched.
	ErrNewer = errors.New("record was written by a newer version")
)

// envelope is the content of a record file.
type envelope struct {
	Schema int             `json:"schema"`
	CRC32C string          `json:"crc32c"`
	Record json.RawMessage `json:"record"`
}

// Encode wraps a record with its schema and checksum.
func Encode(record any) ([]byte, error) {
	raw, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	sum := fmt.Sprintf("%08x", crc32.Checksum(raw, castagnoli))
	return json.Marshal(envelope{Schema: Schema, CRC32C: sum, Record: raw})
}

// Decode is the inverse of Encode. An error wraps [ErrDamaged] or [ErrNewer].
func Decode(data []byte, record any) error {
	var env envelope
	if err := json.Unmarshal(data, &env); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, env.Record); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if sum := fmt.Sprintf("%08x", crc32.Checksum(compact.Bytes(), castagnoli)); sum != env.CRC32C {
		return fmt.Errorf("%w: checksum %s, recorded %s", ErrDamaged, sum, env.CRC32C)
	}
	switch {
	case env.Schema > Schema:
		return fmt.Errorf("%w: schema %d, this version reads up to %d", ErrNewer, env.Schema, Schema)
	case env.Schema < 1:
		return fmt.Errorf("%w: schema %d", ErrDamaged, env.Schema)
	}
	if err := json.Unmarshal(env.Record, record); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// Store is the directory of all records.
type Store struct {
	root string
}

// New returns the store below root, which it does not touch.
func New(root string) Store { return Store{root: root} }

// SandboxDir is the directory of everything recorded of a sandbox.
func (s Store) SandboxDir(id string) string { return filepath.Join(s.root, "pods", id) }

// SandboxFile is the record of a sandbox.
func (s Store) SandboxFile(id string) string { return filepath.Join(s.SandboxDir(id), "pod.json") }

// FilesDir is the directory of the files that containers of a sandbox share, such as resolv.conf.
func (s Store) FilesDir(id string) string { return filepath.Join(s.SandboxDir(id), "files") }

// ContainerFile is the record of a container.
func (s Store) ContainerFile(sandboxID, id string) string {
	return filepath.Join(s.containersDir(sandboxID), id+".json")
}

func (s Store) containersDir(sandboxID string) string {
	return filepath.Join(s.SandboxDir(sandboxID), "containers")
}

// Write replaces a record: readers and crashes see the old or the new one, never a mixture. A record
// that is too large to be read back is an [errdefs.ErrInvalidArgument].
func (s Store) Write(file string, record any) error {
	data, err := Encode(record)
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

// Read reads a record. An error wraps [ErrDamaged], [ErrNewer] or is one of the file system.
func (s Store) Read(file string, record any) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if info.Size() > maxRecord {
		return fmt.Errorf("%w: %d bytes, at most %d are read", ErrDamaged, info.Size(), maxRecord)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return Decode(data, record)
}

// Quarantine moves a damaged record aside, where it stays for inspection until the object is removed.
func (s Store) Quarantine(file string) error {
	err := os.Rename(file, file+damagedSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// RemoveSandbox removes everything recorded of a sandbox and its containers.
func (s Store) RemoveSandbox(id string) error { return os.RemoveAll(s.SandboxDir(id)) }

// RemoveContainer removes everything recorded of a container.
func (s Store) RemoveContainer(sandboxID, id string) error {
	file := s.ContainerFile(sandboxID, id)
	return errors.Join(remove(file), remove(file+damagedSuffix), remove(atomicfile.Temporary(file)))
}

// SandboxIDs lists the sandboxes that have a directory, with a record or without.
func (s Store) SandboxIDs() ([]string, error) {
	return names(filepath.Join(s.root, "pods"), func(e fs.DirEntry) (string, bool) {
		return e.Name(), e.IsDir() && ValidID(e.Name())
	})
}

// ContainerIDs lists the containers of a sandbox that have a record, readable or not.
func (s Store) ContainerIDs(sandboxID string) ([]string, error) {
	seen := map[string]bool{}
	return names(s.containersDir(sandboxID), func(e fs.DirEntry) (string, bool) {
		name := e.Name()
		if len(name) < IDLength || !ValidID(name[:IDLength]) || seen[name[:IDLength]] {
			return "", false
		}
		seen[name[:IDLength]] = true
		return name[:IDLength], true
	})
}

func names(dir string, pick func(fs.DirEntry) (string, bool)) ([]string, error) {
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

func remove(file string) error {
	err := os.Remove(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
