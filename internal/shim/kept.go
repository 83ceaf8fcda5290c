package shim

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/notify"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

// containerPrefix begins the wire names of containers.
const containerPrefix = "container/"

// kept is the client's half of the descriptor store: what a successor of the
// supervisor cannot open again by name, or what must stay open meanwhile.
type kept struct {
	mu         sync.Mutex
	files      map[string]wire.Files // by wire name
	generation string                // the supervisor that has them all
	// left are descriptors of the service manager that are not assigned yet.
	left notify.Inherited
	// unsure are names of which the supervisor may have more than is kept here, or less.
	unsure  map[string]bool
	fdStore *fdStore // has a lock of its own, which is taken after mu
}

func newKept(opts Options) *kept {
	k := &kept{files: map[string]wire.Files{}, unsure: map[string]bool{}, fdStore: newFDStore(opts.Store, opts.Log)}
	if opts.Store != nil {
		k.left = opts.Store.Take()
	}
	return k
}

func containerName(id string) string { return containerPrefix + id }

func execName(containerID, id string) string { return "exec/" + containerID + "/" + id }

// inherits tells whether there is something of a predecessor to inherit.
func (k *kept) inherits() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.left) > 0
}

// inherit keeps what a predecessor has left of the containers that there are, which
// the supervisor may need.
func (k *kept) inherit(ids []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, files := range k.fdStore.claim(k.left, ids) {
		k.files[containerName(id)] = files
		k.unsure[containerName(id)] = true
	}
	k.left = nil
}

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
		name := containerName(held.Id)
		if files, have := k.files[name]; have && !k.unsure[name] && !lacksFIFO(files) {
			continue
		}
		if err := k.fetchLocked(fds, name); err != nil {
			return err
		}
	}
	return nil
}

// lacksFIFO reports whether files are of a terminal that an earlier version of the supervisor read
// from without a FIFO.
func lacksFIFO(files wire.Files) bool {
	return files[wire.Console] != nil && files[wire.Stdout] == nil
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
	delete(k.unsure, name)
	if len(files) > 0 { // it has not ended meanwhile
		k.files[name] = files
	}
	if id, ok := strings.CutPrefix(name, containerPrefix); ok {
		k.fdStore.keep(id, files)
	}
	return nil
}

// drop closes what is kept under name.
func (k *kept) drop(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.files[name].Close()
	delete(k.files, name)
	delete(k.unsure, name)
	if id, ok := strings.CutPrefix(name, containerPrefix); ok {
		k.fdStore.keep(id, nil)
	}
}

// dropStdin closes the write end of a container's stdin.
func (k *kept) dropStdin(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	files := k.files[containerName(id)]
	if f := files[wire.Stdin]; f != nil {
		_ = f.Close()
		delete(files, wire.Stdin)
		k.fdStore.keep(id, files)
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
	k.left.Close()
	k.fdStore.close()
}
