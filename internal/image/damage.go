package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// errDamaged marks a database that cannot be used.
var errDamaged = errors.New("database is damaged")

// checkGeneration reads both databases from end to end. An error that is
// errDamaged means that they are of no use any more; any other says nothing
// about them.
func checkGeneration(dir string) error {
	for database, data := range map[string]string{"meta.db": "content/blobs", "metadata.db": "snapshots"} {
		if err := checkDatabase(filepath.Join(dir, database), filepath.Join(dir, data)); err != nil {
			return err
		}
	}
	return nil
}

// checkDatabase checks one database and the directory that it describes: a
// database that is missing or empty while there is data was lost too.
func checkDatabase(path, data string) error {
	stat, err := os.Stat(path)
	if err == nil && stat.Size() > 0 {
		return readDatabase(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(data)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		// Directories for the digest algorithms are there from the start.
		inside, err := os.ReadDir(filepath.Join(data, entry.Name()))
		if err != nil {
			return err
		}
		if len(inside) > 0 {
			return fmt.Errorf("%w: %s is missing or empty", errDamaged, path)
		}
	}
	return nil
}

// readDatabase visits every key.
func readDatabase(path string) (err error) {
	defer damagedIfPanic(path, &err)()
	// Without writing the list of free pages is not read: a list that makes no
	// sense would make bbolt panic and keep the file mapped.
	database, err := bolt.Open(path, fileMode, &bolt.Options{Timeout: lockWait, ReadOnly: true})
	if err != nil {
		return boltError(path, err)
	}
	defer func() { err = errors.Join(err, database.Close()) }()
	return database.View(func(tx *bolt.Tx) error {
		stat, err := os.Stat(path)
		if err != nil {
			return err
		}
		if stat.Size() < tx.Size() {
			return fmt.Errorf("%w: %s is cut off at %d of %d bytes", errDamaged, path, stat.Size(), tx.Size())
		}
		return tx.ForEach(func(_ []byte, bucket *bolt.Bucket) error { return readBucket(bucket) })
	})
}

// openBolt opens a database, which is locked by that.
func openBolt(path string) (database *bolt.DB, err error) {
	var file *os.File
	defer func() {
		if errors.Is(err, errDamaged) && file != nil {
			// After a panic it would stay open, and locked. Closing twice is harmless.
			if closing := file.Close(); closing != nil && !errors.Is(closing, fs.ErrClosed) {
				err = errors.Join(err, closing)
			}
		}
	}()
	defer damagedIfPanic(path, &err)()
	database, err = bolt.Open(path, fileMode, &bolt.Options{
		Timeout: lockWait,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			file, err = os.OpenFile(name, flag, mode)
			return file, err
		},
	})
	if err != nil {
		return nil, boltError(path, err)
	}
	return database, nil
}

// damagedIfPanic returns what to defer while a database is read that may be
// damaged: bbolt panics over pages that make no sense, and touching what the
// file does not have is a fault.
func damagedIfPanic(path string, err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if r := recover(); r != nil {
			*err = fmt.Errorf("%w: read %s: %v", errDamaged, path, r)
		}
	}
}

func readBucket(bucket *bolt.Bucket) error {
	return bucket.ForEach(func(key, value []byte) error {
		if value == nil {
			inner := bucket.Bucket(key)
			if inner == nil {
				return fmt.Errorf("%w: bucket %q is not there", errDamaged, key)
			}
			return readBucket(inner)
		}
		return nil
	})
}

func boltError(path string, err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("lock %s: another process uses this image store: %w", path, errdefs.ErrFailedPrecondition)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return fmt.Errorf("%w: open %s: %w", errDamaged, path, err)
	default:
		return fmt.Errorf("open %s: %w", path, err)
	}
}
