// Package nri lets plugins of the Node Resource Interface take part in the life
// of pods and containers: they get each event in order, may adjust a
// container before it is made, and may change the limits of others.
//
// Start reading at Manager. The pod engine calls it, one method per event, and
// is called back through Runtime:
//
//	nri.go       the manager: options, start, end
//	events.go    events that plugins get, and the effect of their answers
//	sync.go      what plugins learn when they connect, and ask for by themselves
//	describe.go  pods and containers in the words of NRI
//	adjust.go    adjustments of a plugin to an OCI spec
//	limits.go    resources in the words of NRI and of the CRI
//	relay.go     log lines and figures of the NRI library
//
// # No event is lost, none comes twice
//
// A plugin learns of an object in exactly one of two ways: it is in the list
// that the plugin is given when it connects, or the plugin gets the event of its
// creation. The library's lock for synchronisation sees to that. Each event is
// sent while the lock is held for reading, and in the same critical section
// the engine notes that plugins know the object, or do not any more; a plugin
// is given the list and made part of the audience while it is held for writing.
// Lock order: this lock before any of the engine's. Nothing that holds it
// waits for another event.
package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	validator "github.com/containerd/nri/plugins/default-validator/builtin"
)

const (
	// runtimeName is how Berth names itself to plugins.
	runtimeName = "berth"
	// updateDeadline bounds the changes that one message of a plugin asks for.
	updateDeadline = time.Minute
	// dialDeadline bounds the probe for another server of the socket.
	dialDeadline = time.Second
)

// Validator is the configuration of the built-in validator of adjustments.
type Validator = validator.DefaultValidatorConfig

// Meter takes figures about plugins.
type Meter interface {
	// PluginTook gets the time that a plugin took for an event.
	PluginTook(plugin, event string, took time.Duration)
	// PluginAnswered counts an event that was sent to a plugin.
	PluginAnswered(plugin, event string, ok bool)
}

// Options are what a manager is made of.
type Options struct {
	// Version is Berth's, which plugins get.
	Version string
	// Socket is where plugins connect. Empty means that none can.
	Socket string
	// PluginDir holds programs that are started as plugins, ConfigDir what
	// they are configured with. Either may be absent.
	PluginDir, ConfigDir string
	// RegistrationTimeout bounds the registration of a plugin, RequestTimeout
	// its answer to one event.
	RegistrationTimeout, RequestTimeout time.Duration
	// Validator configures the built-in validator; nil is none.
	Validator *Validator
	// Meter may be nil.
	Meter Meter
	Log   *slog.Logger
}

// Runtime is what a manager asks of the pod engine.
type Runtime interface {
	// Known returns the pods and containers that plugins know of.
	Known() ([]Pod, []Container)
	// LimitContainer changes the limits of a container as a plugin wants; what
	// r leaves open stays as it is.
	LimitContainer(ctx context.Context, id string, r *api.LinuxResources) error
	// EvictContainer has the container stopped, and does not wait for it.
	EvictContainer(id, reason string) error
	// Background runs fn in a goroutine that ends before the engine does.
	Background(fn func(context.Context))
}

// Manager tells plugins of events. Its methods may be called from any
// goroutine. Before Start and after Close no plugin gets an event, nor from a
// nil manager, which is that of a node without NRI.
type Manager struct {
	opts Options
	// rt and adapter are set by Start.
	rt      Runtime
	adapter *adaptation.Adaptation
	// plugins counts those which are connected and synchronised.
	plugins atomic.Int64
	// started tells that the first synchronisation is over: it is that of the
	// plugins which Start starts, also if there are none.
	started atomic.Bool

	// mu guards what follows.
	mu       sync.Mutex
	problems []string // what there is to do without, and why
}

// New makes a manager. Nothing is started yet.
func New(opts Options) *Manager { return &Manager{opts: opts} }

// Start starts the plugins of PluginDir, gives them what rt knows, and lets
// others connect. What keeps some of that from being done is no reason for a
// node not to run pods: it is logged and reported by State, and the rest is done.
func (m *Manager) Start(ctx context.Context, rt Runtime) {
	if m == nil {
		return
	}
	m.rt = rt
	library.set(m.opts.Log)
	adaptation.SetPluginRegistrationTimeout(m.opts.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(m.opts.RequestTimeout)
	socket := m.opts.Socket
	if err := m.claimSocket(ctx); err != nil {
		m.lacks("plugins cannot connect", err)
		socket = ""
	}
	err := m.open(socket, m.opts.PluginDir)
	if err != nil {
		m.lacks("plugins cannot take part in the life of pods", err)
		err = m.open("", "") // the validator still can, and may require them
	}
	if err != nil {
		m.lacks("adjustments cannot be validated", err)
		return
	}
	m.opts.Log.Info("plugins may take part in the life of pods", "socket", socket, "plugin_dir", m.opts.PluginDir)
}

// lacks notes what a node has to do without.
func (m *Manager) lacks(what string, why error) {
	m.opts.Log.Error(what, "error", why)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.problems = append(m.problems, fmt.Sprintf("%s: %v", what, why))
}

// open starts the library with a socket and a directory, either of which may be
// none.
func (m *Manager) open(socket, dir string) error {
	options := []adaptation.Option{
		adaptation.WithPluginPath(dir), adaptation.WithPluginConfigPath(m.opts.ConfigDir),
		adaptation.WithSocketPath(socket), adaptation.WithMetrics(figures{m}), adaptation.WithTTRPCOptions(m.evictions()),
		adaptation.WithDefaultValidator(m.opts.Validator),
	}
	if socket == "" {
		options = append(options, adaptation.WithDisabledExternalConnections())
	}
	adapter, err := adaptation.New(runtimeName, m.opts.Version, m.synchronize, m.requested, options...)
	if err != nil {
		return err
	}
	m.started.Store(false)
	err = adapter.Start()
	if err == nil && socket != "" {
		err = os.Chmod(socket, 0o600) // what connects decides about pods
	}
	if err != nil {
		adapter.Stop()
		return err
	}
	m.adapter = adapter
	return nil
}

// claimSocket makes sure that no other process serves the socket, because the
// library takes it away.
func (m *Manager) claimSocket(ctx context.Context) error {
	if m.opts.Socket == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(m.opts.Socket), 0o700); err != nil {
		return fmt.Errorf("make directory for nri.socket_path: %w", err)
	}
	dialer := net.Dialer{Timeout: dialDeadline}
	conn, err := dialer.DialContext(ctx, "unix", m.opts.Socket)
	if err != nil {
		return nil //nolint:nilerr // no process serves it: a socket that is left over is replaced
	}
	return errors.Join(fmt.Errorf("nri.socket_path %s is served by another runtime", m.opts.Socket), conn.Close())
}

// Close ends the plugins that Start started and lets no other connect.
func (m *Manager) Close() {
	if m != nil && m.adapter != nil {
		m.adapter.Stop()
	}
}

// State is what a manager says about itself.
type State struct {
	Enabled bool   `json:"enabled"`
	Socket  string `json:"socket,omitempty"`
	// Plugins counts those which are connected.
	Plugins int64 `json:"plugins"`
	// Problems say which plugins cannot take part, and why.
	Problems []string `json:"problems,omitempty"`
}

// State says whether plugins can take part, and how many do.
func (m *Manager) State() State {
	if m == nil {
		return State{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return State{Enabled: true, Socket: m.opts.Socket, Plugins: m.plugins.Load(), Problems: m.problems}
}
