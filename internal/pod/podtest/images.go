package podtest

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/pod"
)

// Images is an image manager under test.
type Images struct {
	pod.Images
	// Ref names an image that is present.
	Ref string
	// Dir is an empty directory for mounts.
	Dir string
}

const (
	// missing names an image that no manager has.
	missing = "missing"
	key     = "key"
)

// RunImages tests what the engine relies on in an image manager. open returns one for the length of a test.
func RunImages(t *testing.T, open func(t *testing.T) Images) {
	for name, test := range map[string]func(*testing.T, Images){
		"missing-image":                  missingImage,
		"prepare-rootfs-is-idempotent":   prepareRootfsIsIdempotent,
		"remove-rootfs-is-idempotent":    removeRootfsIsIdempotent,
		"mount-rootfs-is-idempotent":     mountRootfsIsIdempotent,
		"unmount-without-mount":          unmountWithoutMount,
		"prepare-volume-is-idempotent":   prepareVolumeIsIdempotent,
		"remove-volume-is-idempotent":    removeVolumeIsIdempotent,
		"mount-volume-is-idempotent":     mountVolumeIsIdempotent,
		"declared-volumes-are-made-once": declaredVolumesAreMadeOnce,
		"exported-changes-are-imported":  exportedChangesAreImported,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// id is the ID of the image that is present.
func (i Images) id(t *testing.T) string {
	t.Helper()
	img, err := i.Resolve(i.Ref)
	if err != nil {
		t.Fatalf("Resolve: %v", err)
	}
	return img.ID
}

// wantKeys compares a list of keys.
func wantKeys(t *testing.T, list func(context.Context) ([]string, error), want ...string) {
	t.Helper()
	got, err := list(t.Context())
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("keys are %v (%v), want %v", got, err, want)
	}
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// An image that is not present is an ErrNotFound in each call that names one, and leaves nothing.
func missingImage(t *testing.T, i Images) {
	if img, err := i.Resolve(missing); !errdefs.IsNotFound(err) {
		t.Errorf("Resolve: %v, %v, want ErrNotFound", img, err)
	}
	if err := i.PrepareRootfs(t.Context(), key, "sha256:"+missing); !errdefs.IsNotFound(err) {
		t.Errorf("PrepareRootfs: %v, want ErrNotFound", err)
	}
	if err := i.PrepareVolume(t.Context(), key, "sha256:"+missing); !errdefs.IsNotFound(err) {
		t.Errorf("PrepareVolume: %v, want ErrNotFound", err)
	}
	wantKeys(t, i.RootfsKeys)
	wantKeys(t, i.VolumeKeys)
}

// To prepare a layer again is no error: a daemon that was killed does not know that it did.
func prepareRootfsIsIdempotent(t *testing.T, i Images) {
	id := i.id(t)
	for range 2 {
		must(t, "PrepareRootfs", i.PrepareRootfs(t.Context(), key, id))
		wantKeys(t, i.RootfsKeys, key)
	}
	if _, _, err := i.RootfsUsage(t.Context(), key); err != nil {
		t.Errorf("RootfsUsage: %v", err)
	}
	must(t, "RemoveRootfs", i.RemoveRootfs(t.Context(), key))
}

// A layer that was removed, or never was, can be removed.
func removeRootfsIsIdempotent(t *testing.T, i Images) {
	must(t, "RemoveRootfs of an unknown key", i.RemoveRootfs(t.Context(), key))
	must(t, "PrepareRootfs", i.PrepareRootfs(t.Context(), key, i.id(t)))
	for range 2 {
		must(t, "RemoveRootfs", i.RemoveRootfs(t.Context(), key))
		wantKeys(t, i.RootfsKeys)
	}
}

// To mount or unmount again is no error. The manager makes the mount point.
func mountRootfsIsIdempotent(t *testing.T, i Images) {
	target := filepath.Join(i.Dir, "rootfs")
	must(t, "PrepareRootfs", i.PrepareRootfs(t.Context(), key, i.id(t)))
	must(t, "LabelRootfs", i.LabelRootfs(key, ""))
	for range 2 {
		must(t, "MountRootfs", i.MountRootfs(t.Context(), key, target, false, nil))
	}
	for range 2 {
		must(t, "UnmountRootfs", i.UnmountRootfs(t.Context(), target))
	}
	must(t, "RemoveRootfs", i.RemoveRootfs(t.Context(), key))
}

// What is not mounted, or does not exist, can be unmounted.
func unmountWithoutMount(t *testing.T, i Images) {
	must(t, "UnmountRootfs of a directory", i.UnmountRootfs(t.Context(), i.Dir))
	must(t, "UnmountRootfs of what does not exist", i.UnmountRootfs(t.Context(), filepath.Join(i.Dir, "none")))
}

// To prepare a volume again is no error.
func prepareVolumeIsIdempotent(t *testing.T, i Images) {
	id := i.id(t)
	for range 2 {
		must(t, "PrepareVolume", i.PrepareVolume(t.Context(), key, id))
		wantKeys(t, i.VolumeKeys, key)
	}
	must(t, "RemoveVolume", i.RemoveVolume(t.Context(), key))
}

// A volume that was removed, or never was, can be removed.
func removeVolumeIsIdempotent(t *testing.T, i Images) {
	must(t, "RemoveVolume of an unknown key", i.RemoveVolume(t.Context(), key))
	must(t, "PrepareVolume", i.PrepareVolume(t.Context(), key, i.id(t)))
	for range 2 {
		must(t, "RemoveVolume", i.RemoveVolume(t.Context(), key))
		wantKeys(t, i.VolumeKeys)
	}
}

// To mount a volume again is no error, and UnmountRootfs undoes it at once.
func mountVolumeIsIdempotent(t *testing.T, i Images) {
	target := filepath.Join(i.Dir, "volume")
	must(t, "PrepareVolume", i.PrepareVolume(t.Context(), key, i.id(t)))
	for range 2 {
		must(t, "MountVolume", i.MountVolume(t.Context(), key, target, nil, ""))
	}
	for range 2 {
		must(t, "UnmountRootfs", i.UnmountRootfs(t.Context(), target))
	}
	must(t, "RemoveVolume", i.RemoveVolume(t.Context(), key))
}

// The directories of volumes that an image declares are the same when they are asked for again.
func declaredVolumesAreMadeOnce(t *testing.T, i Images) {
	target := filepath.Join(i.Dir, "rootfs")
	must(t, "PrepareRootfs", i.PrepareRootfs(t.Context(), key, i.id(t)))
	must(t, "MountRootfs", i.MountRootfs(t.Context(), key, target, false, nil))
	first, err := i.PrepareVolumeDirs(t.Context(), key, target, []string{"/data"}, nil)
	must(t, "PrepareVolumeDirs", err)
	second, err := i.PrepareVolumeDirs(t.Context(), key, target, []string{"/data"}, nil)
	must(t, "PrepareVolumeDirs", err)
	if !slices.Equal(first, second) {
		t.Errorf("directories are %v, and %v when asked again", first, second)
	}
	must(t, "UnmountRootfs", i.UnmountRootfs(t.Context(), target))
	must(t, "RemoveRootfs", i.RemoveRootfs(t.Context(), key))
}

// What ExportRootfs writes and returns is what ImportRootfs takes.
func exportedChangesAreImported(t *testing.T, i Images) {
	target := filepath.Join(i.Dir, "rootfs")
	must(t, "PrepareRootfs", i.PrepareRootfs(t.Context(), key, i.id(t)))
	must(t, "MountRootfs", i.MountRootfs(t.Context(), key, target, false, nil))
	var changes bytes.Buffer
	removed, err := i.ExportRootfs(t.Context(), key, nil, &changes)
	must(t, "ExportRootfs", err)
	must(t, "ImportRootfs", i.ImportRootfs(t.Context(), target, &changes, removed))
	must(t, "UnmountRootfs", i.UnmountRootfs(t.Context(), target))
	must(t, "RemoveRootfs", i.RemoveRootfs(t.Context(), key))
}
