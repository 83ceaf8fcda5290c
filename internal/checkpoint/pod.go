package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/directory"
)

const (
	podFile    = metadata.PodOptionsFile
	podVersion = 1
	engine     = "berth"
	archiveExt = ".tar"
)

// Pod describes a pod as it was checkpointed.
type Pod struct {
	// ID, Name, Namespace and UID are the pod's.
	ID, Name, Namespace, UID string
	// Containers are the IDs of its containers by name.
	Containers map[string]string
	// Runtime is its handler, Engine the version of Berth.
	Runtime, Version string
}

// ArchiveOf is where a pod's checkpoint has the archive of a container.
func ArchiveOf(dir, containerID string) string { return filepath.Join(dir, containerID+archiveExt) }

// WritePod completes the checkpoint of a pod: the archives are there, now it can
// need to know their kind.
func WritePod(dir string, p Pod) error {
	text, err := json.MarshalIndent(metadata.CheckpointedPodOptions{
		Version: podVersion, Containers: p.Containers,
		Annotations: map[string]string{
			metadata.CheckpointAnnotationEngine: engine, metadata.CheckpointAnnotationEngineVersion: p.Version,
			metadata.CheckpointAnnotationPod: p.Name, metadata.CheckpointAnnotationPodID: p.ID,
			metadata.CheckpointAnnotationNamespace: p.Namespace, metadata.CheckpointAnnotationPodUID: p.UID,
			metadata.CheckpointAnnotationRuntimeName: p.Runtime,
		},
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, podFile), text, fileMode)
}

// PodFiles are the files of a pod's checkpoint, complete or not, and what may be
// left of making it.
func PodFiles(dir string, containerIDs []string) []string {
	files := []string{filepath.Join(dir, podFile)}
	for _, id := range containerIDs {
		archive := ArchiveOf(dir, id)
		files = append(files, archive, Partial(archive), filepath.Join(dir, id))
	}
	return files
}

// OpenPod reads the checkpoint of a pod and what its archives say of their
// containers, by name. The error is of kind ErrInvalidArgument if it is none.
func OpenPod(dir string) (Pod, map[string]*Archive, error) {
	var options metadata.CheckpointedPodOptions
	f, err := directory.OpenRegular(filepath.Join(dir, podFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("there is no %s: %w", podFile, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return Pod{}, nil, fmt.Errorf("read pod checkpoint %s: %w", dir, err)
	}
	if err := errors.Join(readDocument(f, &options), f.Close()); err != nil {
		return Pod{}, nil, fmt.Errorf("read pod checkpoint %s: %s: %w", dir, podFile, err)
	}
	note := options.Annotations
	if options.Version != podVersion || note[metadata.CheckpointAnnotationEngine] != engine {
		return Pod{}, nil, fmt.Errorf("read pod checkpoint %s: version %d of engine %q is not known here: %w",
			dir, options.Version, note[metadata.CheckpointAnnotationEngine], errdefs.ErrInvalidArgument)
	}
	pod := Pod{
		ID: note[metadata.CheckpointAnnotationPodID], Name: note[metadata.CheckpointAnnotationPod],
		Namespace: note[metadata.CheckpointAnnotationNamespace], UID: note[metadata.CheckpointAnnotationPodUID],
		Runtime: note[metadata.CheckpointAnnotationRuntimeName], Version: note[metadata.CheckpointAnnotationEngineVersion],
		Containers: options.Containers,
	}
	archives := map[string]*Archive{}
	for _, name := range slices.Sorted(maps.Keys(pod.Containers)) {
		id := pod.Containers[name]
		if id == "" || strings.ContainsAny(id, "/\x00") || strings.HasPrefix(id, ".") {
			return Pod{}, nil, fmt.Errorf("read pod checkpoint %s: container ID %q makes no sense: %w", dir, id, errdefs.ErrInvalidArgument)
		}
		if archives[name], err = Open(ArchiveOf(dir, id)); err != nil {
			return Pod{}, nil, err
		}
		if got := archives[name].Container.Name; got != name {
			return Pod{}, nil, fmt.Errorf("read pod checkpoint %s: the archive of %q is that of %q: %w", dir, name, got, errdefs.ErrInvalidArgument)
		}
	}
	return pod, archives, nil
}
