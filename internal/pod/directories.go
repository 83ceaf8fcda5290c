package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-runtime/berth/internal/directory"
)

// No user of the host gets into what belongs to a pod. In the state directory
//
//	containers/       is a passage: it cannot be listed, and all that is in it is closed
//	containers/<id>/  is for root, and for root of the pod's user namespace, which the OCI runtime
//	                  becomes before it resolves the path of the root file system
//	ns/ pods/ volumes/ are for root: what is bound from there is opened by the OCI runtime as root

// openDirs makes the directories in which those of pods are, and closes what earlier versions made.
func (e *Engine) openDirs() error {
	for name, mode := range map[string]fs.FileMode{
		"containers": directory.Passage, "ns": directory.Private, "pods": directory.Private, "volumes": directory.Private,
	} {
		if err := directory.Make(filepath.Join(e.opts.State, name), mode); err != nil {
			return fmt.Errorf("make directory for pods: %w", err)
		}
	}
	return nil
}

// closeBundles gives the bundles of earlier versions the mode of today's. One without a record is for root alone until it
// is removed. One that cannot be closed does not keep the engine from opening.
func (e *Engine) closeBundles() error {
	entries, err := os.ReadDir(filepath.Join(e.opts.State, "containers"))
	if err != nil {
		return fmt.Errorf("list bundles: %w", err)
	}
	for _, entry := range entries {
		id, root := entry.Name(), owner{}
		if c := e.containers.byID[id]; c != nil {
			root = rootOf(c.sandbox.rec.Config.M)
		} else if s := e.sandboxes.byID[id]; s != nil {
			root = rootOf(s.rec.Config.M)
		}
		if err := directory.Admit(e.bundleDir(id), root.gid); err != nil {
			e.opts.Log.Error("bundle not closed to other users", "id", id, "error", err)
		}
	}
	return nil
}

// makeRootfsDir makes the directory of a bundle, and that on which the root file system is mounted: it may be mounted
// already, and what is seen then is the container's. Beside root, only root of the pod gets through.
func (e *Engine) makeRootfsDir(id string, root owner) error {
	if err := directory.Admit(e.bundleDir(id), root.gid); err != nil {
		return fmt.Errorf("make directory of bundle: %w", err)
	}
	if err := os.Mkdir(e.rootfsDir(id), directory.Private); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make mount point of root file system: %w", err)
	}
	return nil
}

// removeFile removes a file that may be gone already.
func removeFile(file string) error {
	err := os.Remove(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
