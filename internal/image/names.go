package image

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-runtime/berth/internal/atomicfile"
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
	if err := atomicfile.WriteDurable(path, data, fileMode); err != nil {
		return fmt.Errorf("write image names: %w", err)
	}
	return nil
}

func (n names) clone() names { return maps.Clone(n) }
