// Package checkpoint reads and writes checkpoints: of containers in the tar
// format that container engines share and that checkpointctl shows, of pods as
// a directory of such archives.
//
//	config.dump           what the container is, and of which image
//	spec.dump             its OCI runtime spec
//	deleted.files         what it removed from its image
//	rootfs-diff.tar       what it added and changed
//	devshm-checkpoint.tar what is in the pod's /dev/shm, if it has its own
//	checkpoint/           its processes: CRIU's images
//	dump.log, stats-dump  what CRIU says of the dump
//
// Before it is packed, a checkpoint is a directory with these names. Packing
// and unpacking move data in pieces: how much there is does not matter. What is
// read may come from anywhere, so no name in it leads out of where it is put.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// The names in an archive.
	configFile  = metadata.ConfigDumpFile
	specFile    = metadata.SpecDumpFile
	deletedFile = metadata.DeletedFilesFile
	changesFile = metadata.RootFsDiffTar
	shmFile     = metadata.DevShmCheckpointTar
	imagesDir   = metadata.CheckpointDirectory

	dirMode  = 0o700
	fileMode = 0o600

	// crioAnnotation names the container in an image that CRI-O has made of a checkpoint.
	crioAnnotation = "io.kubernetes.cri-o.annotations.checkpoint.name"

	// maxDocument bounds one of the small files of an archive.
	maxDocument = 32 << 20
)

// documents are the small files, which come first.
var documents = []string{configFile, specFile, deletedFile}

// OfImage tells from the annotations of an image whether it is a checkpoint, as `checkpointctl build` and CRI-O make them.
func OfImage(annotations map[string]string) bool {
	for _, name := range []string{metadata.CheckpointAnnotationName, crioAnnotation} {
		if annotations[name] != "" {
			return true
		}
	}
	return false
}

// Container describes a container as it was checkpointed.
type Container struct {
	// ID and Name are the container's.
	ID, Name string
	// Image is what the user asked for, ImageName a name of it, ImageID the
	// digest of its configuration.
	Image, ImageName, ImageID string
	// Runtime is the handler that ran it.
	Runtime string
	// CreatedAt and At are when it and the checkpoint were made.
	CreatedAt, At time.Time
}

func (c *Container) dump() metadata.ContainerConfig {
	return metadata.ContainerConfig{
		ID: c.ID, Name: c.Name, RootfsImage: c.Image, RootfsImageName: c.ImageName, RootfsImageRef: c.ImageID,
		OCIRuntime: c.Runtime, CreatedTime: c.CreatedAt, CheckpointedAt: c.At,
	}
}

func containerOf(dump metadata.ContainerConfig) Container {
	return Container{
		ID: dump.ID, Name: dump.Name, Image: dump.RootfsImage, ImageName: dump.RootfsImageName, ImageID: dump.RootfsImageRef,
		Runtime: dump.OCIRuntime, CreatedAt: dump.CreatedTime, At: dump.CheckpointedAt,
	}
}

// Dir is a checkpoint that is being made: a directory of its own.
type Dir string

// Make makes the directories that a checkpoint needs.
func (d Dir) Make() error {
	return os.MkdirAll(d.Images(), dirMode)
}

// Images is where CRIU puts its images.
func (d Dir) Images() string { return filepath.Join(string(d), imagesDir) }

// WriteContainer notes what the container is; spec is its config.json.
func (d Dir) WriteContainer(c Container, spec []byte) error {
	text, err := json.MarshalIndent(c.dump(), "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(string(d), configFile), text, fileMode); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(string(d), specFile), spec, fileMode)
}

// WriteChanges notes what the container changed in its files: export writes an
// archive and returns what was removed.
func (d Dir) WriteChanges(export func(io.Writer) (removed []string, err error)) error {
	var removed []string
	err := d.write(changesFile, func(w io.Writer) (err error) {
		removed, err = export(w)
		return err
	})
	if err != nil {
		return err
	}
	text, err := json.Marshal(append([]string{}, removed...))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(string(d), deletedFile), text, fileMode)
}

// WriteShm notes what is in the shared memory of the pod.
func (d Dir) WriteShm(export func(io.Writer) error) error { return d.write(shmFile, export) }

func (d Dir) write(name string, fill func(io.Writer) error) (err error) {
	f, err := os.OpenFile(filepath.Join(string(d), name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, fileMode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return fill(f)
}

// Archive is a packed checkpoint of a container.
type Archive struct {
	// Container and Spec are what it was.
	Container Container
	Spec      specs.Spec
	// Removed are the files that it removed from its image.
	Removed []string

	path string
}

// Open reads what an archive says of its container. The error is of kind
// ErrInvalidArgument if it is none.
func Open(path string) (*Archive, error) {
	a := &Archive{path: path}
	var dump metadata.ContainerConfig
	into := map[string]any{configFile: &dump, specFile: &a.Spec, deletedFile: &a.Removed}
	err := a.each(func(name string, content io.Reader) error {
		value := into[name]
		if value == nil {
			return nil
		}
		delete(into, name)
		if err := readDocument(content, value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if len(into) == 0 {
			return errEnough
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read checkpoint %s: %w", path, err)
	}
	for _, name := range []string{configFile, specFile} {
		if into[name] != nil {
			return nil, fmt.Errorf("read checkpoint %s: it has no %s: %w", path, name, errdefs.ErrInvalidArgument)
		}
	}
	a.Container = containerOf(dump)
	return a, nil
}

// Path is the archive's file.
func (a *Archive) Path() string { return a.path }

func readDocument(content io.Reader, value any) error {
	text, err := io.ReadAll(io.LimitReader(content, maxDocument+1))
	if err != nil {
		return err
	}
	if len(text) > maxDocument {
		return fmt.Errorf("it is longer than %d bytes: %w", maxDocument, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(text, value); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Images unpacks CRIU's images into a directory, which must be empty.
func (a *Archive) Images(dir string) error {
	found := false
	err := a.each(func(name string, content io.Reader) error {
		base, ok := imageName(name)
		if !ok {
			return nil
		}
		found = true
		f, err := os.OpenFile(filepath.Join(dir, base), os.O_CREATE|os.O_EXCL|os.O_WRONLY, fileMode)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Close())
	})
	if err == nil && !found {
		err = fmt.Errorf("it has no %s: %w", imagesDir, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("unpack checkpoint %s: %w", a.path, err)
	}
	return nil
}

// Changes hands the archive of changed files to apply; there may be none.
func (a *Archive) Changes(apply func(io.Reader) error) error { return a.part(changesFile, apply) }

// Shm hands the archive of the pod's shared memory to apply; there may be none.
func (a *Archive) Shm(apply func(io.Reader) error) error { return a.part(shmFile, apply) }

func (a *Archive) part(want string, apply func(io.Reader) error) error {
	if err := a.walkPart(want, CheckTree); err != nil {
		return err
	}
	return a.walkPart(want, apply)
}

func (a *Archive) walkPart(want string, apply func(io.Reader) error) error {
	err := a.each(func(name string, content io.Reader) error {
		if name != want {
			return nil
		}
		if err := apply(content); err != nil {
			return err
		}
		return errEnough
	})
	if err != nil {
		return fmt.Errorf("unpack %s of checkpoint %s: %w", want, a.path, err)
	}
	return nil
}

// RemoveFile removes a file that may be gone already.
func RemoveFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
