package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-runtime/berth/internal/pod/store"
)

// noteExt ends the name of a file that holds an intent.
const noteExt = ".json"

// intent is what a checkpoint or a restore is about to do: should the daemon die,
// the next one undoes it.
type intent struct {
	// Frozen are the cgroups of containers that stand still.
	Frozen []string `json:"frozen,omitempty"`
	// Files are files and directories that are of no use to anybody else.
	Files []string `json:"files,omitempty"`
	// Sandbox is one that is of no use unless it is complete.
	Sandbox string `json:"sandbox,omitempty"`
}

// undo lets containers go on and removes what is not complete. The sandbox is
// left to the caller.
func (i *intent) undo(e *Engine) error {
	var errs []error
	for _, path := range i.Frozen {
		errs = append(errs, e.opts.Cgroups.Thaw(path))
	}
	for _, file := range i.Files {
		errs = append(errs, os.RemoveAll(file))
	}
	return errors.Join(errs...)
}

// undoIntents undoes what the death of an earlier daemon cut off, and returns the
// sandboxes that are to go. No container stands still afterwards.
func (e *Engine) undoIntents() (sandboxes []string, err error) {
	root := filepath.Join(e.opts.Root, "checkpoints")
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list checkpoints that were cut off: %w", err)
	}
	for _, entry := range entries {
		file := filepath.Join(root, entry.Name())
		id, isNote := strings.CutSuffix(entry.Name(), noteExt)
		if !isNote {
			// The files of a container that is to go on from a checkpoint; or unknown files.
			if _, known := e.containers.byID[entry.Name()]; !known {
				err = errors.Join(err, os.RemoveAll(file))
			}
			continue
		}
		var cut intent
		readErr := e.store.Read(file, &cut)
		if errors.Is(readErr, store.ErrNewer) {
			return nil, newerRecord(file, readErr)
		}
		if readErr != nil {
			e.opts.Log.Error("note of a checkpoint is unreadable", "file", file, "error", readErr)
		}
		if cut.Sandbox != "" {
			sandboxes = append(sandboxes, cut.Sandbox)
		}
		e.opts.Log.Info("undo a checkpoint that was cut off", "checkpoint", id)
		err = errors.Join(err, cut.undo(e), removeFile(file))
	}
	return sandboxes, err
}
