package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/internal/network"
	"github.com/berth-runtime/berth/internal/pod/machine"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/internal/spec"
)

// The levels of a sandbox.
const (
	sandboxGone = iota
	sandboxStopped
	sandboxReady
)

// sandboxSteps is the step table of sandboxes, in the order of doing.
var sandboxSteps stepTable[*sandbox]

func init() { // its functions refer to it
	sandboxSteps = newStepTable("sandbox", []machine.Level{
		{Name: "gone"},
		{Name: "stopped", Fallback: sandboxGone}, // also where a sandbox stays after a probe has found a step missing
		{Name: "ready", Fallback: sandboxGone, Lost: sandboxStopped},
	}, []step[*sandbox]{
		{
			name: "files", from: sandboxStopped,
			do: (*sandbox).makeFiles, undo: (*sandbox).removeFiles, probe: (*sandbox).probeFiles,
		},
		{
			name: "cgroup", from: sandboxReady,
			do: (*sandbox).makeCgroup, undo: (*sandbox).removeCgroup, probe: (*sandbox).probeCgroup, again: true,
		},
		{
			name: "namespaces", from: sandboxReady, uses: (*sandbox).hasNamespaces,
			do: (*sandbox).makeNamespaces, undo: (*sandbox).removeNamespaces, probe: (*sandbox).probeNamespaces,
		},
		{
			name: "shm", from: sandboxReady, uses: (*sandbox).hasIPC,
			do: (*sandbox).mountShm, undo: (*sandbox).unmountShm, probe: (*sandbox).probeShm,
		},
		{
			name: "infra", from: sandboxReady, uses: (*sandbox).hasInfra,
			do: (*sandbox).startInfra, undo: (*sandbox).endInfra, probe: (*sandbox).probeInit,
		},
		{ // It lives in the network namespace, which the step namespaces probes.
			name: networkStep, from: sandboxReady, uses: (*sandbox).hasNetwork,
			do: (*sandbox).attachNetwork, undo: (*sandbox).detachNetwork, deadline: (*sandbox).networkDeadline,
		},
		{ // A sandbox container is PID 1 of the pod's PID namespace, too.
			name: "container", from: sandboxReady, uses: func(s *sandbox) bool { return s.hasContainer },
			do: (*sandbox).startContainer, undo: (*sandbox).endContainer, probe: (*sandbox).probeInit,
		},
		{
			name: pluginsStep, from: sandboxReady, late: true,
			do: (*sandbox).tellStarted, undo: (*sandbox).tellStopped,
		},
	})
}

// networkStep and pluginsStep are the steps of a sandbox that other code asks for.
const (
	networkStep = "network"
	pluginsStep = "nri-pod"
)

// shmBytes is the size of a pod's /dev/shm unless configured, which other runtimes give too.
const shmBytes = 64 << 20

// namespaceOptions returns the options of a sandbox; nil means all defaults.
func namespaceOptions(cfg *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	return cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// hasNetwork reports whether the pod has a network of its own, not the node's.
func (s *sandbox) hasNetwork() bool {
	return namespaceOptions(s.rec.Config.M).GetNetwork() == runtimeapi.NamespaceMode_POD
}

// hasIPC reports whether the pod has an IPC namespace and a /dev/shm of its own.
func (s *sandbox) hasIPC() bool { return s.rec.hasIPC() }

func (r *sandboxRecord) hasIPC() bool {
	return namespaceOptions(r.Config.M).GetIpc() == runtimeapi.NamespaceMode_POD
}

// hasNamespaces reports whether the pod has a namespace that exists without a process.
func (s *sandbox) hasNamespaces() bool {
	_, _, user := spec.UserNamespace(s.rec.Config.M)
	return s.hasNetwork() || s.hasIPC() || user
}

// hasInfra reports whether the pod needs an infra process: its containers share a PID namespace and no
// sandbox container is PID 1 of that.
func (s *sandbox) hasInfra() bool {
	return !s.hasContainer && namespaceOptions(s.rec.Config.M).GetPid() == runtimeapi.NamespaceMode_POD
}

func (s *sandbox) do(ctx context.Context, step int) error { return sandboxSteps.do(ctx, s, step) }

func (s *sandbox) undo(ctx context.Context, step int) error { return sandboxSteps.undo(ctx, s, step) }

func (s *sandbox) probe(step int) error { return sandboxSteps.probe(s, step) }

func (s *sandbox) deadline(step int) time.Duration { return sandboxSteps.deadline(s, step) }

func (s *sandbox) makeFiles(context.Context) error {
	if err := s.engine.writeFiles(&s.rec); err != nil {
		return err
	}
	return labelFiles(s.engine.store.FilesDir(s.rec.ID), s.rec.Labels.Mount)
}

func (s *sandbox) removeFiles(context.Context) error {
	return os.RemoveAll(s.engine.store.FilesDir(s.rec.ID))
}

// probeFiles: files on disk are all that survives a reboot.
func (s *sandbox) probeFiles() error {
	_, err := os.Stat(s.engine.store.FilesDir(s.rec.ID))
	return err
}

func (s *sandbox) removeNamespaces(ctx context.Context) error {
	return s.engine.removeNamespaces(ctx, s.rec.ID, s.rec.NetNS)
}

func (s *sandbox) probeNamespaces() error {
	if _, ok := namespace.Probe(s.engine.namespaceDir(s.rec.ID)); !ok {
		return errors.New("the namespaces are gone, as after a reboot of the node")
	}
	return nil
}

func (s *sandbox) mountShm(context.Context) error {
	return mountShm(s.engine.shmDir(s.rec.ID), cmp.Or(s.rec.ShmBytes, shmBytes), rootOf(s.rec.Config.M), s.rec.Labels.Mount)
}

func (s *sandbox) unmountShm(context.Context) error { return unmountShm(s.engine.shmDir(s.rec.ID)) }

func (s *sandbox) probeShm() error {
	if !isShm(s.engine.shmDir(s.rec.ID)) {
		return errors.New("/dev/shm of the pod is gone, as after a reboot of the node")
	}
	return nil
}

// probeInit looks for the infra process or the sandbox container. One that has ended is there: its end
// is reported as an exit.
func (s *sandbox) probeInit() error {
	if _, ok := s.engine.supervised[s.rec.ID]; !ok {
		return fmt.Errorf("the %s is gone, as after a reboot of the node", s.holder())
	}
	return nil
}

func (s *sandbox) networkDeadline() time.Duration { return s.engine.opts.NetworkDeadline }

func (s *sandbox) detachNetwork(ctx context.Context) error {
	e := s.engine
	if s.rec.Network == nil { // the record was lost, and the plan with it
		return e.collectNetwork(ctx, s.rec.ID)
	}
	return e.opts.Network.Detach(ctx, e.networkPod(&s.rec), *s.rec.Network)
}

// tellStarted tells plugins of the pod, which they may refuse.
func (s *sandbox) tellStarted(ctx context.Context) error {
	return s.engine.opts.Plugins.RunPod(ctx, s.subject(), func() { s.setKnown(true) })
}

func (s *sandbox) makeNamespaces(ctx context.Context) error {
	cfg := s.rec.Config.M
	o := namespaceOptions(cfg)
	podNet := o.GetNetwork() == runtimeapi.NamespaceMode_POD
	req := namespace.Request{
		Dir: s.engine.namespaceDir(s.rec.ID), Net: podNet, UTS: podNet, IPC: o.GetIpc() == runtimeapi.NamespaceMode_POD,
		Sysctls: s.rec.sysctls(), Label: s.rec.Labels.Mount,
	}
	req.UIDs, req.GIDs, _ = spec.UserNamespace(cfg)
	if req.UTS {
		req.Hostname = spec.Hostname(cfg, s.engine.opts.Host)
	}
	paths, err := namespace.Create(ctx, req)
	if err != nil {
		return err
	}
	if s.rec.NetNS != "" && paths.Net != "" {
		if err := namespace.PinNet(paths.Net, s.rec.NetNS); err != nil {
			return err
		}
		paths.Net = s.rec.NetNS
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec.Namespaces = paths
	return nil
}

func (s *sandbox) startInfra(ctx context.Context) error {
	e := s.engine
	s.mu.Lock()
	ns := s.rec.Namespaces
	s.mu.Unlock()
	if err := e.opts.Cgroups.Create(s.infraCgroup()); err != nil {
		return err
	}
	as := lastIDs(s.rec.Config.M)
	pid, err := e.opts.Shim.StartInfra(ctx, shim.InfraRequest{
		ID: s.rec.ID, NetNS: ns.Net, IPC: ns.IPC, UTS: ns.UTS, User: ns.User, UID: as.uid, GID: as.gid, CgroupPath: s.infraCgroup(),
		MountLabel: s.rec.Labels.Mount, ProcessLabel: s.rec.Labels.Process, AppArmor: e.opts.Host.AppArmorDefault,
	})
	if err != nil {
		return err
	}
	path, err := namespace.PinPID(e.namespaceDir(s.rec.ID), pid)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec.PID, s.rec.Namespaces.PID = pid, path
	return nil
}

func (s *sandbox) infraCgroup() string {
	return filepath.Join(s.rec.CgroupParent, "infra-"+s.rec.ID)
}

// endInfra ends the process that holds the shared PID namespace, and with it
// whatever still runs in there.
func (s *sandbox) endInfra(ctx context.Context) error {
	e := s.engine
	if err := e.opts.Shim.Kill(ctx, s.rec.ID, unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		return err
	}
	if err := e.opts.Cgroups.KillAll(ctx, s.infraCgroup()); err != nil {
		return err
	}
	if err := e.opts.Shim.Delete(ctx, s.rec.ID); err != nil {
		return err
	}
	if err := e.opts.Cgroups.Remove(s.infraCgroup()); err != nil {
		return err
	}
	if ns := s.rec.Namespaces; ns.Net == "" && ns.IPC == "" && ns.User == "" {
		return namespace.Remove(ctx, e.namespaceDir(s.rec.ID))
	}
	return nil
}

func (s *sandbox) attachNetwork(ctx context.Context) error {
	e := s.engine
	result, err := e.opts.Network.Attach(ctx, e.networkPod(&s.rec), *s.rec.Network)
	if err != nil {
		return err
	}
	if len(result.IPs) == 0 {
		return fmt.Errorf("the network gave the pod no address: %w", errdefs.ErrUnavailable)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec.IPs = addressTexts(result.IPs)
	return nil
}

func addressTexts(ips []netip.Addr) []string {
	texts := make([]string, len(ips))
	for i, ip := range ips {
		texts[i] = ip.String()
	}
	return texts
}

// networkPod is what the network manager needs to know of a sandbox.
func (e *Engine) networkPod(rec *sandboxRecord) network.Pod {
	cfg := rec.Config.M
	m := cfg.GetMetadata()
	pod := network.Pod{
		ID: rec.ID, Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(),
		NetNS: e.netns(rec), Annotations: cfg.GetAnnotations(),
		Sysctls: rec.sysctls(), CgroupParent: cfg.GetLinux().GetCgroupParent(), Kubelet: madeByKubelet(cfg),
		DNS: network.DNS{
			Servers: cfg.GetDnsConfig().GetServers(), Searches: cfg.GetDnsConfig().GetSearches(), Options: cfg.GetDnsConfig().GetOptions(),
		},
	}
	pod.Bandwidth, _ = bandwidthOf(cfg.GetAnnotations()) // newSandbox has refused a bad one
	for _, p := range cfg.GetPortMappings() {
		if p.GetHostPort() <= 0 {
			continue // CRI: no host port is asked for
		}
		pod.PortMappings = append(pod.PortMappings, network.PortMapping{
			Protocol: p.GetProtocol().String(), ContainerPort: p.GetContainerPort(),
			HostPort: p.GetHostPort(), HostIP: p.GetHostIp(),
		})
	}
	return pod
}

// sourceAnnotation is on each pod of a kubelet, and says where the kubelet has it from.
const sourceAnnotation = "kubernetes.io/config.source"

// madeByKubelet reports whether a kubelet has made a sandbox. Tools set the label too, but not the annotation.
func madeByKubelet(cfg *runtimeapi.PodSandboxConfig) bool {
	_, sourced := cfg.GetAnnotations()[sourceAnnotation]
	return sourced && cfg.GetLabels()[podUIDLabel] == cfg.GetMetadata().GetUid()
}

func (e *Engine) namespaceDir(id string) string { return filepath.Join(e.opts.State, "ns", id) }

// netns is the path of a sandbox's network namespace.
func (e *Engine) netns(rec *sandboxRecord) string {
	if rec.NetNS != "" {
		return rec.NetNS
	}
	return filepath.Join(e.namespaceDir(rec.ID), "net")
}

// netPin is where a new sandbox's network namespace is pinned for plugins and tools.
func (e *Engine) netPin(id string) string {
	if e.opts.NetNSDir == "" {
		return ""
	}
	return filepath.Join(e.opts.NetNSDir, "cni-"+id)
}

// removeNamespaces removes the namespaces of a sandbox, and the pin of its network namespace for plugins and tools.
func (e *Engine) removeNamespaces(ctx context.Context, id, pin string) error {
	var err error
	if pin != "" {
		err = namespace.UnpinNet(pin)
	}
	return errors.Join(err, namespace.Remove(ctx, e.namespaceDir(id)))
}

func (e *Engine) shmDir(id string) string { return filepath.Join(e.opts.State, "pods", id, "shm") }

// mountShm mounts the memory that the containers of a pod share.
func mountShm(dir string, bytes int64, root owner, label string) error {
	if isShm(dir) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	opts := fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", bytes, root.uid, root.gid)
	if label != "" {
		opts += fmt.Sprintf(",context=%q", label) // it contains commas
	}
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

func isShm(dir string) bool {
	var st, parent unix.Stat_t
	return unix.Stat(dir, &st) == nil && unix.Stat(filepath.Dir(dir), &parent) == nil && st.Dev != parent.Dev
}

// unmountShm undoes mountShm, however often it was mounted.
func unmountShm(dir string) error {
	for {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return removeEmpty(dir, filepath.Dir(dir))
}

// removeEmpty removes directories that may be gone already. It never removes
// what is in them: should an unmount have been incomplete, nothing is lost.
func removeEmpty(dirs ...string) error {
	for _, dir := range dirs {
		if err := removeFile(dir); err != nil {
			return err
		}
	}
	return nil
}
