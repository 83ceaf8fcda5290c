package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/atomicfile"
)

const (
	// leaseVersion is the version of the lease files.
	leaseVersion = 1
	leaseSuffix  = ".json"
	// maxLeaseSize bounds what is read of a lease file; a pod with a thousand host ports needs a tenth of it.
	maxLeaseSize = 1 << 20
)

// errNewer is a lease that a newer version wrote. It is left as it is, for the version that can read it.
var errNewer = errors.New("network lease of a newer version")

// lease is what a pod holds of the node: addresses of the built-in network and host ports. It is written before either is
// used and removed after both are gone.
type lease struct {
	Version   int            `json:"version"`
	ID        string         `json:"id"`
	Pod       string         `json:"pod"`
	Network   Kind           `json:"network"`
	Addresses []netip.Prefix `json:"addresses,omitempty"` // each with the length of its subnet, IPv4 before IPv6
	Ports     []port         `json:"ports,omitempty"`
	Published bool           `json:"published,omitempty"` // the ports are ours, and so in our table
	Bandwidth Bandwidth      `json:"bandwidth,omitzero"`  // of the built-in network
}

// leaseStore holds the leases of a node, in memory and in a directory with a file for each. Leases survive a restart; after a
// power loss, when no pod lives, a torn file is as good as none, so nothing is synced.
type leaseStore struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex
	leases map[string]*lease // by pod ID; immutable once in here
	owners map[netip.Addr]string
	cursor uint32 // offset of the address given last; reuse comes late, peers may still remember an old pod
}

// openLeaseStore reads the leases in dir, which is created if it is not there.
func openLeaseStore(dir string, log *slog.Logger) (*leaseStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open network leases: %w", err)
	}
	l := &leaseStore{dir: dir, log: log, leases: map[string]*lease{}, owners: map[netip.Addr]string{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open network leases: %w", err)
	}
	var newest time.Time
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		held, changed, err := readLease(path)
		if errors.Is(err, errNewer) {
			return nil, fmt.Errorf("open network leases: %s: %w", path, err)
		}
		if err != nil {
			log.Warn("removing unreadable network lease", "file", path, "error", err)
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("open network leases: %w", err)
			}
			continue
		}
		l.remember(held)
		if len(held.Addresses) > 0 && changed.After(newest) {
			newest, l.cursor = changed, offsetOf(held.Addresses[0])
		}
	}
	return l, nil
}

func readLease(path string) (*lease, time.Time, error) {
	if filepath.Ext(path) != leaseSuffix {
		return nil, time.Time{}, errors.New("write was interrupted")
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, time.Time{}, err
	}
	if info.Size() > maxLeaseSize {
		return nil, time.Time{}, fmt.Errorf("%d bytes is too large", info.Size())
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, time.Time{}, err
	}
	held, err := parseLease(raw)
	if err == nil && held.ID+leaseSuffix != filepath.Base(path) {
		err = fmt.Errorf("holds the lease of pod %s", held.ID)
	}
	return held, info.ModTime(), err
}

// parseLease refuses whatever this package would not have written. A torn file lacks the end of the JSON object.
func parseLease(raw []byte) (*lease, error) {
	var held lease
	if err := json.Unmarshal(raw, &held); err != nil {
		return nil, err
	}
	if held.Version > leaseVersion {
		return nil, fmt.Errorf("%w: version %d, this version reads up to %d", errNewer, held.Version, leaseVersion)
	}
	if held.Version != leaseVersion {
		return nil, fmt.Errorf("version %d, want %d", held.Version, leaseVersion)
	}
	if len(held.ID) > maxIDLength || !validID.MatchString(held.ID) {
		return nil, fmt.Errorf("pod ID %q is malformed", held.ID)
	}
	for _, prefix := range held.Addresses {
		if !prefix.IsValid() || prefix.Addr().Is4In6() {
			return nil, fmt.Errorf("address %q is malformed", prefix)
		}
	}
	for _, p := range held.Ports {
		if p.Protocol != TCP && p.Protocol != UDP && p.Protocol != SCTP || p.Host == 0 || p.Container == 0 || p.Address.Is4In6() || p.Address.Zone() != "" {
			return nil, fmt.Errorf("host port %s is malformed", p)
		}
	}
	return &held, nil
}

// claim records that a pod holds ports and, if there are subnets, an address of each. A pod that has a lease already keeps
// its addresses. It is an [errdefs.ErrAlreadyExists] if another pod has one of the ports, and an
// [errdefs.ErrResourceExhausted] if the subnets are used up.
func (l *leaseStore) claim(want lease, nets subnets) (*lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.conflict(want); err != nil {
		return nil, err
	}
	want.Version = leaseVersion
	cursor := l.cursor
	if held := l.leases[want.ID]; held != nil && len(held.Addresses) > 0 {
		want.Addresses = held.Addresses
	} else if len(nets) > 0 {
		offset, err := nets.free(cursor, func(a netip.Addr) bool { return l.owners[a] != "" })
		if err != nil {
			return nil, err
		}
		cursor, want.Addresses = offset, nets.at(offset)
	}
	if err := l.write(&want); err != nil {
		return nil, err
	}
	l.cursor = cursor
	l.remember(&want)
	return &want, nil
}

func (l *leaseStore) conflict(want lease) error {
	for _, held := range l.leases {
		if held.ID == want.ID {
			continue
		}
		for _, has := range held.Ports {
			for _, p := range want.Ports {
				if p.conflicts(has) {
					return fmt.Errorf("host port %s is in use by pod %s (%s): %w", p, held.Pod, held.ID, errdefs.ErrAlreadyExists)
				}
			}
		}
	}
	return nil
}

// address replaces the addresses of a pod with a lease by those that it really has.
func (l *leaseStore) address(id string, addresses []netip.Prefix) (*lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.leases[id]
	if held == nil {
		return nil, fmt.Errorf("network lease of pod %s: %w", id, errdefs.ErrNotFound)
	}
	changed := *held
	changed.Addresses = addresses
	if err := l.write(&changed); err != nil {
		return nil, err
	}
	l.forget(held)
	l.remember(&changed)
	return &changed, nil
}

// vacate takes the host ports out of the lease of a pod.
func (l *leaseStore) vacate(id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.leases[id]
	if held == nil {
		return nil
	}
	changed := *held
	changed.Ports = nil
	if err := l.write(&changed); err != nil {
		return err
	}
	l.forget(held)
	l.remember(&changed)
	return nil
}

// release gives up the lease of a pod. No lease is no error.
func (l *leaseStore) release(id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.leases[id]
	if held == nil {
		return nil
	}
	if err := os.Remove(l.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release network lease: %w", err)
	}
	l.forget(held)
	return nil
}

// get returns the lease of a pod or nil.
func (l *leaseStore) get(id string) *lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leases[id]
}

// all returns every lease, ordered by pod ID.
func (l *leaseStore) all() []*lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	leases := make([]*lease, 0, len(l.leases))
	for _, held := range l.leases {
		leases = append(leases, held)
	}
	slices.SortFunc(leases, func(a, b *lease) int { return strings.Compare(a.ID, b.ID) })
	return leases
}

// remember takes a lease into memory. Preconditions: l.mu is held, or l is not shared yet.
func (l *leaseStore) remember(held *lease) {
	l.leases[held.ID] = held
	if held.Network != Builtin {
		return // what a plugin gives is not ours to keep apart
	}
	for _, prefix := range held.Addresses {
		l.owners[prefix.Addr()] = held.ID
	}
}

// forget takes a lease out of memory. Preconditions: l.mu is held.
func (l *leaseStore) forget(held *lease) {
	delete(l.leases, held.ID)
	for _, prefix := range held.Addresses {
		if l.owners[prefix.Addr()] == held.ID {
			delete(l.owners, prefix.Addr())
		}
	}
}

// write makes the file of a lease, or replaces it in one step. Preconditions: l.mu is held.
func (l *leaseStore) write(held *lease) error {
	raw, err := json.Marshal(held)
	if err != nil {
		return fmt.Errorf("write network lease: %w", err)
	}
	if len(raw) > maxLeaseSize {
		return fmt.Errorf("write network lease: it has %d bytes, want at most %d: %w", len(raw), maxLeaseSize, errdefs.ErrInvalidArgument)
	}
	err = atomicfile.Write(l.path(held.ID), raw, 0o600)
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENOSPC) {
		err = errors.Join(errdefs.ErrResourceExhausted, err)
	}
	return fmt.Errorf("write network lease: %w", err)
}

func (l *leaseStore) path(id string) string {
	return filepath.Join(l.dir, id+leaseSuffix)
}
