// Package supervisor is the server of berth-shim: the parent of every container
// of a node. It runs the OCI runtime, owns stdio, log files and exit codes, and
// holds its state in such a way that it can be killed at any instant:
//
//	<state>/shim/
//	  shim.sock, fd.sock    the two sockets of package wire
//	  launch.lock           held by a client while it looks for a supervisor
//	  serve.lock            held by the supervisor
//	  shim.log              its own log
//	  exits                 the exit journal
//	  infra/                the root directory of infra processes: one program, nothing else
//	  c/<container>/        record.json, the FIFOs in, out and err, the log's spool, the PID file
//
// # How an exit travels
//
//	kernel ──SIGCHLD or pidfd──▶ status looked at, zombie left
//	       ──▶ journal (raw)  ──▶ zombie reaped
//	       ──▶ OOM counter read, leftovers of the cgroup killed, output drained
//	       ──▶ journal (final) ──▶ clients
//
// A successor resumes at whichever arrow was reached.
//
// # Locks
//
// container.op, one operation on a container, comes before Supervisor.mu, which
// comes before container.mu; children.mu is innermost but for the journal's. No
// lock but container.op is held while a runtime works.
package supervisor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/berth-runtime/berth/internal/ociruntime/shimv2"
	"github.com/berth-runtime/berth/internal/shim/crilog"
	"github.com/berth-runtime/berth/internal/shim/journal"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

// welcomeTimeout is how long a supervisor without containers waits for its first client.
const welcomeTimeout = 30 * time.Second

// Cgroups is what the supervisor needs of the host's cgroups. Paths are relative
// to the mounts.
type Cgroups interface {
	// Create makes a cgroup, Remove removes it and those below it, also when there is none.
	Create(path string) error
	Remove(path string) error
	// AddProc moves a process, Procs lists them.
	AddProc(path string, pid int) error
	Procs(path string, recursive bool) ([]int, error)
	// KillAll kills every process below path and waits until none is left.
	KillAll(ctx context.Context, path string) error
	// Freeze stops the processes below path, Thaw lets them run, Frozen tells whether that is ordered.
	Freeze(ctx context.Context, path string) error
	Thaw(path string) error
	Frozen(path string) (bool, error)
	// OOMKills counts the processes below path that the kernel killed for lack of memory.
	OOMKills(path string) (uint64, error)
	// OnlyUnified tells whether there is no hierarchy of version 1.
	OnlyUnified() bool
}

// Config is what a supervisor needs.
type Config struct {
	// Dir is the supervisor's directory.
	Dir string
	// Cgroup is the supervisor's own cgroup, made and joined by Run; empty means to stay.
	Cgroup string
	// Version is reported to clients.
	Version string
	Cgroups Cgroups
	Log     *slog.Logger
	// Handover is the memfd of a predecessor that executed this program, or nil.
	Handover *os.File
	// CollectTimeout is when the process of an exec is ended that no caller has collected.
	CollectTimeout time.Duration
	// Args are the arguments to execute a successor with.
	Args []string
	// Ready is called once the supervisor serves.
	Ready func()
}

// Supervisor serves one state directory.
type Supervisor struct {
	cfg        Config
	log        *slog.Logger
	generation string
	children   *children
	ooms       *oomLedger
	turns      *crilog.Turns
	journal    *journal.Journal
	gate       *gate
	staging    *staging
	joined     bool          // this process is in its own cgroup
	swept      chan struct{} // closed once no OCI runtime of a predecessor is at work
	lock       *os.File
	wg         sync.WaitGroup
	stop       context.CancelFunc

	rpc     *ttrpc.Server
	clients *countingListener
	dropped droppedReaders
	fds     *net.UnixListener

	mu         sync.Mutex // guards what follows
	containers map[string]*container
	hosts      map[string]*host // by pod
	session    string
	exits      []*container // in the order of their ends
	exitsLost  uint64       // how many were taken off the front of exits
	exitsNew   chan struct{}
	unlogged   int // deleted containers whose output waits for the disk of its log
}

// Run serves until ctx ends, until it is asked to shut down, or until its last
// client is gone while there is no container. It must be called on the main
// thread, and the main goroutine must be locked to it. Containers run on. It is
// [ErrServed] that another one serves already.
func Run(ctx context.Context, cfg Config) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := &Supervisor{
		cfg: cfg, log: cfg.Log, generation: rand.Text(), children: newChildren(cfg.Log), gate: newGate(), stop: stop,
		ooms:       newOOMLedger(cfg.Cgroups.OOMKills),
		turns:      crilog.NewTurns(max(1, runtime.GOMAXPROCS(0)-1)), // the rest serves calls
		containers: map[string]*container{}, hosts: map[string]*host{}, staging: newStaging(), swept: make(chan struct{}), exitsNew: make(chan struct{}),
	}
	// What a predecessor left half done is undone meanwhile, with OCI runtimes that are forked here.
	prepared := make(chan error, 1)
	go func() { prepared <- s.prepare(ctx) }()
	for waiting := true; waiting; {
		select {
		case fork := <-s.children.forks:
			fork()
		case err := <-prepared:
			if err != nil {
				return err
			}
			waiting = false
		}
	}
	s.wg.Go(func() { s.children.reap(ctx) })
	s.wg.Go(func() { s.serveFDs(ctx) })
	s.wg.Go(func() {
		if err := s.rpc.Serve(ctx, s.clients); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) {
			s.log.Error("serve calls", "error", err)
			stop()
		}
	})
	if cfg.Ready != nil {
		cfg.Ready()
	}
	// The daemon that started this one may have ended before it could connect.
	unwanted := time.AfterFunc(welcomeTimeout, func() { s.clients.ifNone(s.leaveIfIdle) })
	defer unwanted.Stop()
	for {
		select {
		case fork := <-s.children.forks:
			fork()
		case <-ctx.Done():
			return s.leave()
		}
	}
}

// prepare takes the lock, opens the sockets and takes over what a predecessor left.
func (s *Supervisor) prepare(ctx context.Context) error {
	for _, dir := range []string{s.cfg.Dir, s.containersDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create %s: %w", dir, err)
		}
	}
	handed, err := readHandover(s.cfg.Handover)
	if err != nil {
		return err
	}
	if s.lock = handed.lock; s.lock == nil {
		if s.lock, err = takeServeLock(ctx, s.cfg.Dir); err != nil {
			return err
		}
	}
	// Clients connect from now on, and wait; else they would start another supervisor.
	if err := s.listen(handed); err != nil {
		return err
	}
	if err := becomeSubreaper(); err != nil {
		return err
	}
	s.joinCgroup()
	if s.journal, err = journal.Open(filepath.Join(s.cfg.Dir, "exits")); err != nil {
		return err
	}
	if err := s.recoverAll(ctx, handed); err != nil {
		return err
	}
	if s.rpc, err = ttrpc.NewServer(); err != nil {
		return fmt.Errorf("make server: %w", err)
	}
	wire.RegisterShimService(s.rpc, &service{s: s})
	shimv2.DropEvents(s.rpc)
	return nil
}

func (s *Supervisor) containersDir() string { return filepath.Join(s.cfg.Dir, "c") }

// leave closes everything and gives the cgroup up. What runs is found again by a successor.
func (s *Supervisor) leave() error {
	errs := []error{s.rpc.Close(), ignoreClosed(s.fds.Close()), s.leaveCgroup()}
	s.mu.Lock()
	if len(s.containers) == 0 {
		for _, name := range []string{wire.Socket, wire.FDSocket, "exits"} {
			errs = append(errs, remove(filepath.Join(s.cfg.Dir, name)))
		}
	}
	s.mu.Unlock()
	return errors.Join(errs...)
}

// leaveIfIdle ends the supervisor when it is not needed.
func (s *Supervisor) leaveIfIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.containers) == 0 && s.unlogged == 0 {
		s.stop()
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// publish tells clients of an exit that is final.
func (s *Supervisor) publish(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exits = append(s.exits, c)
	close(s.exitsNew)
	s.exitsNew = make(chan struct{})
}

// maxExits bounds one answer, to stay below ttrpc's message size.
const maxExits = 1000

// exitsAfter returns exits behind a cursor, the cursor behind them, and a channel
// that is closed when there are more.
func (s *Supervisor) exitsAfter(cursor uint64) ([]*container, uint64, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := max(cursor, s.exitsLost)
	var list []*container
	for ; at < s.exitsLost+uint64(len(s.exits)) && len(list) < maxExits; at++ {
		if c := s.exits[at-s.exitsLost]; c != nil {
			list = append(list, c)
		}
	}
	return list, at, s.exitsNew
}

// find returns a container.
func (s *Supervisor) find(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil {
		return nil, notFound(id)
	}
	return c, nil
}

// forget drops a container; its exit is not published any more.
func (s *Supervisor) forget(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.id] == c {
		delete(s.containers, c.id)
	}
	for i, other := range s.exits {
		if other == c {
			s.exits[i] = nil
		}
	}
	for len(s.exits) > 0 && s.exits[0] == nil {
		s.exits = s.exits[1:]
		s.exitsLost++
	}
}
