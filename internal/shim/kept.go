package shim

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/shim/wire"
)

// kept is the client's half of the descriptor store: what a successor of the
// supervisor cannot open again by name, or what must stay open meanwhile.
type kept struct {
	mu         sync.Mutex
	files      map[string]wire.Files // by wire name
	generation string                // the supervisor that has them all
}

func newKept() *kept { return &kept{files: map[string]wire.Files{}} }

func containerName(id string) string { return "container/" + id }

func execName(containerID, id string) string { return "exec/" + containerID + "/" + id }

// reconcile hands everything to a new supervisor and fetches what is missing here.
func (k *kept) reconcile(fds *wire.FDConn, hello *wire.HelloResponse) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.generation != hello.Generation {
		for name, files := range k.files {
			if err := fds.Put(name, files); err != nil {
				return err
			}
		}
		k.generation = hello.Generation
	}
	for _, held := range hello.Containers {
		if _, have := k.files[containerName(held.Id)]; have {
			continue
		}
		if err := k.fetchLocked(fds, containerName(held.Id)); err != nil {
			return err
		}
	}
	return nil
}

// fetch keeps what the supervisor has under name.
func (k *kept) fetch(fds *wire.FDConn, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fetchLocked(fds, name)
}

func (k *kept) fetchLocked(fds *wire.FDConn, name string) error {
	files, err := fds.Get(name)
	if err != nil {
		return err
	}
	k.files[name].Close()
	delete(k.files, name)
	if len(files) > 0 { // it has not ended meanwhile
		k.files[name] = files
	}
	return nil
}

// drop closes what is kept under name.
func (k *kept) drop(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.files[name].Close()
	delete(k.files, name)
}

// dropKind closes one descriptor of name.
func (k *kept) dropKind(name, kind string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f := k.files[name][kind]; f != nil {
		_ = f.Close()
		delete(k.files[name], kind)
	}
}

// dup returns a duplicate of a descriptor that is kept; the caller closes it.
func (k *kept) dup(name, kind string) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.files[name][kind]
	if f == nil {
		return nil, fmt.Errorf("no %s kept of %s: %w", kind, name, unix.ENOENT)
	}
	return wire.Dup(f)
}

func (k *kept) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, files := range k.files {
		files.Close()
		delete(k.files, name)
	}
}
