package nri

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// namespaceTypes are those of the OCI spec.
var namespaceTypes = []specs.LinuxNamespaceType{
	specs.PIDNamespace, specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace,
	specs.UTSNamespace, specs.UserNamespace, specs.CgroupNamespace, specs.TimeNamespace,
}

// adjustLinux changes what only Linux has, limits aside.
func adjustLinux(s *specs.Spec, a *api.LinuxContainerAdjustment) error {
	if a == nil {
		return nil
	}
	l := s.Linux
	adjustDevices(l, a.GetDevices())
	if a.GetCgroupsPath() != "" {
		l.CgroupsPath = a.GetCgroupsPath()
	}
	if v := a.GetOomScoreAdj(); v != nil {
		score := int(v.GetValue())
		s.Process.OOMScoreAdj = &score
	}
	if v := a.GetIoPriority(); v != nil {
		if s.Process.IOPriority = v.ToOCI(); s.Process.IOPriority.Class == "" {
			s.Process.IOPriority = nil
		}
	}
	if v := a.GetScheduler(); v != nil {
		s.Process.Scheduler = v.ToOCI()
	}
	if v := a.GetSeccompPolicy(); v != nil {
		l.Seccomp = seccomp(v)
	}
	if err := adjustNamespaces(l, a.GetNamespaces()); err != nil {
		return err
	}
	l.Sysctl = adjustMap(l.Sysctl, a.GetSysctl())
	l.NetDevices = adjustMap(l.NetDevices, netDevices(a.GetNetDevices()))
	if v := a.GetMemoryPolicy(); v != nil {
		if l.MemoryPolicy = v.ToOCI(); l.MemoryPolicy.Mode == "" {
			l.MemoryPolicy = nil
		}
	}
	adjustRdt(l, a.GetRdt())
	return nil
}

// adjustDevices replaces devices by their path. A device that is added may be
// used, too.
func adjustDevices(l *specs.Linux, changes []*api.LinuxDevice) {
	for _, d := range changes {
		path, gone := d.IsMarkedForRemoval()
		l.Devices = slices.DeleteFunc(l.Devices, func(have specs.LinuxDevice) bool { return have.Path == path })
		if gone {
			continue
		}
		l.Devices = append(l.Devices, d.ToOCI())
		if l.Resources == nil {
			l.Resources = &specs.LinuxResources{}
		}
		major, minor := d.GetMajor(), d.GetMinor()
		l.Resources.Devices = append(l.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.GetType(), Major: &major, Minor: &minor, Access: d.AccessString(),
		})
	}
}

func adjustNamespaces(l *specs.Linux, changes []*api.LinuxNamespace) error {
	for _, n := range changes {
		name, gone := n.IsMarkedForRemoval()
		kind := specs.LinuxNamespaceType(name)
		if !slices.Contains(namespaceTypes, kind) {
			return fmt.Errorf("linux.namespaces %q: is none of the OCI spec, which has %q: %w", name, namespaceTypes, errdefs.ErrInvalidArgument)
		}
		at := slices.IndexFunc(l.Namespaces, func(have specs.LinuxNamespace) bool { return have.Type == kind })
		switch {
		case gone && at >= 0:
			l.Namespaces = slices.Delete(l.Namespaces, at, at+1)
		case gone:
		case at >= 0:
			l.Namespaces[at].Path = n.GetPath()
		default:
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: kind, Path: n.GetPath()})
		}
	}
	return nil
}

func seccomp(p *api.LinuxSeccomp) *specs.LinuxSeccomp {
	policy := &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(p.GetDefaultAction()), ListenerPath: p.GetListenerPath(),
		ListenerMetadata: p.GetListenerMetadata(), Syscalls: api.ToOCILinuxSyscalls(p.GetSyscalls()),
	}
	if v := p.GetDefaultErrno(); v != nil {
		errno := uint(v.GetValue())
		policy.DefaultErrnoRet = &errno
	}
	for _, arch := range p.GetArchitectures() {
		policy.Architectures = append(policy.Architectures, specs.Arch(arch))
	}
	for _, flag := range p.GetFlags() {
		policy.Flags = append(policy.Flags, specs.LinuxSeccompFlag(flag))
	}
	return policy
}

func netDevices(changes map[string]*api.LinuxNetDevice) map[string]specs.LinuxNetDevice {
	devices := make(map[string]specs.LinuxNetDevice, len(changes))
	for name, d := range changes {
		devices[name] = d.ToOCI()
	}
	return devices
}

func adjustRdt(l *specs.Linux, r *api.LinuxRdt) {
	if r == nil {
		return
	}
	if r.GetRemove() {
		l.IntelRdt = nil
	}
	if r.GetClosId() == nil && r.GetSchemata() == nil && r.GetEnableMonitoring() == nil {
		return
	}
	if l.IntelRdt == nil {
		l.IntelRdt = &specs.LinuxIntelRdt{}
	}
	if v := r.GetClosId(); v != nil {
		l.IntelRdt.ClosID = v.GetValue()
	}
	if v := r.GetSchemata(); v != nil {
		l.IntelRdt.Schemata = v.GetValue()
	}
	if v := r.GetEnableMonitoring(); v != nil {
		l.IntelRdt.EnableMonitoring = v.GetValue()
	}
}
