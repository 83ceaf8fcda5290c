package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// namesVersion is the format of names.json.
const namesVersion = 1

// names maps full references to the manifest or index that they stand for.
type names map[string]ocispec.Descriptor

type namesFile struct {
	Version int   `json:"version"`
	Images  names `json:"images"`
}

// readNames reads the file, which is only needed when the databases are lost.
func readNames(path string) (names, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read image names: %w", err)
	}
	var file namesFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("read image names %s: %w", path, err)
	}
	if file.Version != namesVersion {
		return nil, fmt.Errorf("read image names %s: version %d is not known", path, file.Version)
	}
	return file.Images, nil
}

// write replaces the file so that it survives a power loss whole.
func (n names) write(path string) error {
	data, err := json.Marshal(namesFile{Version: namesVersion, Images: n})
	if err != nil {
		return fmt.Errorf("encode image names: %w", err)
	}
	if err := replaceFile(path, data, true); err != nil {
		return fmt.Errorf("write image names: %w", err)
	}
	return nil
}

func (n names) clone() names { return maps.Clone(n) }

// replaceFile writes a file under a temporary name and renames it. Durable
// means that the data and the new name are on the disk when it returns.
func replaceFile(path string, data []byte, durable bool) (err error) {
	temporary := path + ".new"
	defer func() {
		if err != nil {
			if rm := os.Remove(temporary); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
				err = errors.Join(err, rm)
			}
		}
	}()
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
