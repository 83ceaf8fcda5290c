// Package atomicfile replaces files: readers and crashes see the old or the new content, never a
// mixture and never a part.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// temporarySuffix ends the name of a file that is being written.
const temporarySuffix = ".new"

// Temporary is the name under which the content for path is written. A process that is killed while
// it writes leaves this file; the next Write of path overwrites it.
func Temporary(path string) string { return path + temporarySuffix }

// Write replaces the file at path without fsync: after a power loss it may be empty. mode, less the
// umask, is that of a new file. Two writers of one path must take turns. After an error the old
// content is there and the temporary file is not.
func Write(path string, data []byte, mode fs.FileMode) error {
	return replace(path, data, mode, false)
}

// WriteDurable is Write with fsync of the file and of its directory: the new content survives a
// power loss once a nil error is returned.
func WriteDurable(path string, data []byte, mode fs.FileMode) error {
	if err := replace(path, data, mode, true); err != nil {
		return err
	}
	return SyncDirectory(filepath.Dir(path))
}

func replace(path string, data []byte, mode fs.FileMode, sync bool) (err error) {
	temporary := Temporary(path)
	defer func() {
		if err != nil {
			err = fmt.Errorf("replace %s: %w", filepath.Base(path), errors.Join(err, remove(temporary)))
		}
	}()
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// SyncDirectory makes the names in a directory survive a power loss.
func SyncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", path, err)
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
