package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cdi"
	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/cri"
	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/internal/network"
	"github.com/berth-runtime/berth/internal/notify"
	"github.com/berth-runtime/berth/internal/nri"
	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/handlers"
	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/internal/spec"
	"github.com/berth-runtime/berth/internal/stream"
	"github.com/berth-runtime/berth/internal/telemetry"
	"github.com/berth-runtime/berth/internal/version"
)

const (
	// callGrace is how long calls and sessions in flight may take to end when
	// the daemon does. What a call began is taken up by the next daemon.
	callGrace = 5 * time.Second
	// closeGrace bounds the end of the parts after that.
	closeGrace = 15 * time.Second
	// scrapeDeadline bounds one question to the supervisor during a scrape of metrics.
	scrapeDeadline = 2 * time.Second
	// instanceLength is how much of a hash tells daemons on one host apart.
	instanceLength = 8
)

// daemon is the parts of a running berthd. What is opened is put on closers
// and closed in the opposite order.
type daemon struct {
	cfg      *config.Config
	file     string // that cfg is from
	log      *slog.Logger
	instance string
	metrics  *telemetry.Metrics
	manager  *notify.Manager
	closers  []closer

	images   *image.Store
	network  *network.Manager
	shim     *shim.Client
	handlers *handlers.Set
	plugins  *nri.Manager
	engine   *pod.Engine
	sessions *stream.Server
	edge     *cri.Server
}

// closer ends one part.
type closer struct {
	what string
	end  func(ctx context.Context) error
}

// serve runs a daemon until ctx ends.
func serve(ctx context.Context, cfg *config.Config, file string, log *slog.Logger) (err error) {
	d := &daemon{cfg: cfg, file: file, log: log, instance: instanceOf(cfg.Root), metrics: telemetry.NewMetrics(version.Version)}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	if d.manager, err = notify.Find(); err != nil {
		return err
	}
	log.Info("berthd begins", "version", version.Version, "root", cfg.Root, "state", cfg.State)
	if err := d.lock(); err != nil {
		return err
	}
	// The socket comes before all that takes time: clients then wait for an
	// answer instead of being refused. Until it is served it belongs to us.
	calls, err := d.listen(ctx)
	if err != nil {
		return err
	}
	if err := d.open(ctx); err != nil {
		return errors.Join(err, calls.Close())
	}
	return d.run(ctx, calls)
}

// lock makes the directories of this daemon, closes them to other users and keeps other daemons away.
func (d *daemon) lock() error {
	for _, dir := range []string{d.cfg.State, d.cfg.Root} {
		if err := d.closeDir(dir); err != nil {
			return err
		}
		file, err := lockDir(dir)
		if err != nil {
			return err
		}
		d.onClose("unlock "+dir, func(context.Context) error { return file.Close() })
	}
	return nil
}

// open opens the parts: first those that know nothing of each other, all at
// once, then those that are made of them.
func (d *daemon) open(ctx context.Context) error {
	d.loadProfile(ctx)
	host, err := spec.ReadHost()
	if err != nil {
		return err
	}
	cgroups, err := cgroup.Detect()
	if err != nil {
		return err
	}
	defaults, err := d.readDefaults(&host)
	if err != nil {
		return err
	}
	if err := d.openHandlers(ctx, host); err != nil {
		return err
	}
	opening, openCtx := errgroup.WithContext(ctx)
	opening.Go(func() (err error) {
		d.images, err = d.openImages(ctx)
		return err
	})
	opening.Go(func() (err error) {
		d.network, err = d.openNetwork(ctx)
		return err
	})
	opening.Go(func() (err error) {
		d.shim, err = d.connectShim(ctx, defaults.OpenFiles())
		return err
	})
	opening.Go(func() error {
		d.handlers.Await(openCtx)
		return nil
	})
	err = opening.Wait()
	d.onCloseOpened()
	if err != nil {
		return err
	}
	d.checkUserNamespaces(&host)
	if err := d.openEngine(ctx, host, cgroups, defaults); err != nil {
		return err
	}
	return d.openEdge(ctx)
}

// onCloseOpened notes what there is to close, also when another part failed.
func (d *daemon) onCloseOpened() {
	if d.images != nil {
		d.onClose("close the image store", func(context.Context) error { return d.images.Close() })
	}
	if d.network != nil {
		d.onClose("close the network", func(context.Context) error { return d.network.Close() })
	}
	if d.shim != nil {
		d.onClose("leave the supervisor", func(context.Context) error { return d.shim.Close() })
	}
}

func (d *daemon) openImages(ctx context.Context) (*image.Store, error) {
	return image.Open(ctx, image.Options{
		Root:                   filepath.Join(d.cfg.Root, "images"),
		RegistryConfigDir:      d.cfg.Image.RegistryConfigDir,
		RegistryConfigDirs:     d.cfg.Image.RegistryConfigDirs,
		AuthFile:               d.cfg.Image.AuthFile,
		MirrorCredentials:      d.cfg.Image.MirrorCredentials,
		MaxConcurrentDownloads: d.cfg.Image.MaxConcurrentDownloads,
		StallTimeout:           d.cfg.Image.Stall(),
		MinBytesPerSecond:      d.cfg.Image.MinBytesPerSecond,
		MaxUnpackedSize:        int64(d.cfg.Image.MaxUnpackedSize),
		Pinned:                 d.cfg.Image.Pinned,
		VerifierDir:            d.cfg.Image.VerifierDir,
		Log:                    d.log.With("part", "image"),
	})
}

func (d *daemon) openNetwork(ctx context.Context) (*network.Manager, error) {
	subnet := d.cfg.Network.BuiltinSubnet
	if d.instance != "" && slices.Equal(subnet, config.Default().Network.BuiltinSubnet) {
		// The default addresses belong to the daemon with the default root;
		// another gets some that are chosen by its own.
		subnet = nil
	}
	return network.New(ctx, network.Options{
		ConfDir:       d.cfg.Network.CNIConfDir,
		BinDirs:       d.cfg.Network.CNIBinDirs,
		Builtin:       d.cfg.Network.Builtin,
		BuiltinSubnet: subnet,
		HostPorts:     d.cfg.Network.HostPorts,
		Root:          filepath.Join(d.cfg.Root, "network"),
		Instance:      d.instance,
		Log:           d.log.With("part", "network"),
	})
}

func (d *daemon) connectShim(ctx context.Context, openFiles uint64) (*shim.Client, error) {
	program, err := shimProgram()
	if err != nil {
		return nil, err
	}
	return shim.Connect(ctx, shim.Options{
		State: d.cfg.State, Binary: program, Instance: d.instance, OpenFiles: openFiles, Store: d.manager.Store(), Log: d.log.With("part", "shim"),
	})
}

func (d *daemon) openEngine(ctx context.Context, host spec.Host, cgroups *cgroup.Host, defaults *spec.Defaults) error {
	if err := namespace.PrepareNetDir(d.cfg.Network.NetNSDir); err != nil {
		return err
	}
	d.openPlugins()
	injectCDI, err := d.deviceSpecs()
	if err != nil {
		return err
	}
	engine, err := pod.Open(ctx, pod.Options{
		Root: d.cfg.Root, State: d.cfg.State, Instance: d.instance, NetNSDir: d.cfg.Network.NetNSDir,
		Images: d.images, Network: d.network, Shim: d.shim, Plugins: d.plugins,
		Cgroups: cgroups, CgroupDriver: d.cgroupDriver(), Host: host,
		InjectCDI:    injectCDI,
		Handlers:     d.handlers,
		Warned:       d.metrics.Unsupported,
		LogLimit:     int64(d.cfg.Log.ContainerBytesPerSecond),
		ImageVolumes: d.cfg.Image.Volumes,
		Defaults:     defaults,
		HostPaths:    pod.HostPaths{Create: d.cfg.Pod.CreateHostPaths, Except: d.cfg.Pod.CreateHostPathsExcept},
		Log:          d.log.With("part", "pod"),
	})
	if err != nil {
		return err
	}
	d.engine = engine
	d.onClose("close the pod engine", engine.Close)
	d.metrics.Logs(func() (telemetry.LogTotals, error) { //nolint:contextcheck // it outlives the start
		ctx, cancel := context.WithTimeout(context.Background(), scrapeDeadline)
		defer cancel()
		t, err := d.shim.LogTotals(ctx)
		return telemetry.LogTotals(t), err
	})
	for _, state := range []runtimeapi.PodSandboxState{runtimeapi.PodSandboxState_SANDBOX_READY, runtimeapi.PodSandboxState_SANDBOX_NOTREADY} {
		d.metrics.Gauge("pods", "Pod sandboxes by state.", map[string]string{"state": state.String()},
			func() float64 { return float64(len(engine.Sandboxes(pod.Filter{SandboxState: &state}))) })
	}
	for value, name := range runtimeapi.ContainerState_name {
		state := runtimeapi.ContainerState(value)
		d.metrics.Gauge("containers", "Containers by state.", map[string]string{"state": name},
			func() float64 { return float64(len(engine.Containers(pod.Filter{ContainerState: &state}))) })
	}
	return nil
}

// cgroupDriver is the same for all handlers, and kubelet's.
func (d *daemon) cgroupDriver() cgroup.Driver { return cgroup.ChooseDriver(d.cfg.Runtime.CgroupDriver) }

// deviceSpecs returns what adds devices to a spec by name; nil if it is
// switched off.
func (d *daemon) deviceSpecs() (func(*specs.Spec, []string) error, error) {
	if len(d.cfg.CDI.SpecDirs) == 0 {
		return nil, nil
	}
	devices, err := cdi.Open(d.cfg.CDI.SpecDirs)
	if err != nil {
		return nil, err
	}
	return devices.Inject, nil
}

// openEdge makes what answers clients.
func (d *daemon) openEdge(ctx context.Context) (err error) {
	var encryption *stream.TLS
	if d.cfg.Stream.TLS {
		cert, key, generate := d.cfg.TLSFiles()
		encryption = &stream.TLS{CertFile: cert, KeyFile: key, Generate: generate, ClientCAFile: d.cfg.Stream.TLSClientCAFile}
	}
	d.sessions, err = stream.Listen(ctx, stream.Options{
		Address: d.cfg.Stream.Address, Port: d.cfg.Stream.Port, TLS: encryption, IdleTimeout: d.cfg.Stream.Idle(),
		Runtime: cri.StreamRuntime(d.engine), Meter: d.metrics, Log: d.log.With("part", "stream"),
	})
	if err != nil {
		return err
	}
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if d.cgroupDriver() == cgroup.Systemd {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	d.edge = cri.New(cri.Options{
		Engine: d.engine, Images: d.images, Sessions: d.sessions, Meter: d.metrics, Log: d.log.With("part", "cri"),
		Version: version.Version, CgroupDriver: driver, Config: shownConfig{d.cfg, d.cfg.State}, Plugins: d.plugins.State,
		CheckCRIU: new(ociruntime.CRIU).Check, SawKubelet: d.network.SawKubelet, SetPodCIDR: d.network.SetPodCIDR,
	})
	return nil
}

// shownConfig is the configuration as a verbose status shows it: with the name
// that conformance tests look for.
type shownConfig struct {
	*config.Config
	StateDir string `json:"stateDir"`
}

// run serves until ctx ends or something that serves fails.
func (d *daemon) run(ctx context.Context, calls net.Listener) error {
	serving, ctx := errgroup.WithContext(ctx)
	if address := d.cfg.Metrics.Address; address != "" {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			return errors.Join(fmt.Errorf("listen for metrics on %s: %w", address, err), calls.Close(), d.sessions.Shutdown(ctx))
		}
		serving.Go(func() error { return d.metrics.Serve(ctx, l, d.log.With("part", "metrics")) })
	}
	serving.Go(func() error {
		d.collectGarbage(ctx)
		return nil
	})
	serving.Go(d.sessions.Serve)
	serving.Go(func() error { return d.edge.Serve(calls) })
	serving.Go(func() error {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), callGrace)
		defer cancel()
		if err := d.manager.Stopping(grace); err != nil {
			d.log.Warn("systemd does not know that berthd ends", "error", err)
		}
		d.drain(grace)
		return nil
	})
	if err := d.manager.Ready(ctx); err != nil {
		d.log.Warn("systemd does not know that berthd serves", "error", err)
	}
	d.log.Info("berthd serves", "listen", d.cfg.Listen, "sessions", d.sessions.Addr().String(),
		"handler", d.engine.DefaultHandler(), "pods", len(d.engine.Sandboxes(pod.Filter{})))
	return serving.Wait()
}

// drain ends sessions and calls. Those that have to be cut are no failure of
// the daemon: their clients try again.
func (d *daemon) drain(ctx context.Context) {
	var draining errgroup.Group
	draining.Go(func() error { return d.sessions.Shutdown(ctx) })
	draining.Go(func() error { return d.edge.Shutdown(ctx) })
	if err := draining.Wait(); err != nil {
		d.log.Warn("not everything ended in time", "error", err)
	}
}

func (d *daemon) onClose(what string, end func(context.Context) error) {
	d.closers = append(d.closers, closer{what, end})
}

// close closes what was opened, last first.
func (d *daemon) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeGrace)
	defer cancel()
	var failures error
	for _, c := range slices.Backward(d.closers) {
		if err := c.end(ctx); err != nil {
			failures = errors.Join(failures, fmt.Errorf("%s: %w", c.what, err))
		}
	}
	return failures
}
