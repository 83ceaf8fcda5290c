package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

// The protocols that a host port can have.
const (
	TCP  = "tcp"
	UDP  = "udp"
	SCTP = "sctp"
)

// maxIDLength keeps the names of lease files below NAME_MAX.
const maxIDLength = 128

// validID is what CNI allows as a container ID; it is safe as a file name too.
var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`)

// Pod is what the network has to know of a pod.
type Pod struct {
	ID           string            // of the sandbox
	Name         string            // Kubernetes name
	Namespace    string            // Kubernetes namespace
	UID          string            // Kubernetes UID
	NetNS        string            // path of the pinned network namespace; it may be gone for Detach
	PortMappings []PortMapping     // host ports; entries without HostPort are ignored
	Annotations  map[string]string // for plugins with the capability io.kubernetes.cri.pod-annotations
	Bandwidth    Bandwidth         // for plugins with the capability bandwidth
	CgroupParent string            // for plugins with the capability cgroupPath
	Kubelet      bool              // made by a kubelet
	DNS          DNS               // for plugins with the capability dns
	Sysctls      map[string]string // those of network devices are set after the devices exist
}

// PortMapping makes a port of the pod reachable at the host.
type PortMapping struct {
	Protocol      string // tcp (also if empty), udp or sctp, in any case
	ContainerPort int32
	HostPort      int32  // 0 asks for none
	HostIP        string // empty: every address of the host, IPv4 and IPv6
}

// DNS is the resolver configuration of a pod.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Plan is the decision how a pod is connected. It is made once, stored before anything is done, and holds whatever undoing
// needs, so that a pod leaves the network it joined although the configuration has changed since.
type Plan struct {
	Kind      Kind            `json:"kind"`
	Network   string          `json:"network"`             // name of the conflist or of the bridge
	IfName    string          `json:"ifName"`              // device in the pod
	Config    json.RawMessage `json:"config,omitempty"`    // the whole conflist
	HostPorts bool            `json:"hostPorts,omitempty"` // host ports are ours, not those of a plugin
}

// Kind says what connects a pod.
type Kind string

// The kinds of networks.
const (
	CNI     Kind = "cni"     // plugins, by a conflist
	Builtin Kind = "builtin" // the bridge of this package
)

// Result is how a pod can be reached.
type Result struct {
	IPs []netip.Addr    `json:"ips"` // the primary address first
	Raw json.RawMessage `json:"raw"` // the CNI result, or the same said of the built-in network
}

// String names the pod in errors and log lines.
func (p Pod) String() string {
	if p.Name == "" {
		return p.ID
	}
	return p.Namespace + "/" + p.Name
}

// validate checks what would otherwise be refused halfway, or end up in a file name.
func (p Pod) validate() error {
	switch {
	case len(p.ID) > maxIDLength, !validID.MatchString(p.ID):
		return fmt.Errorf("pod ID %q: want letters, digits and _.-: %w", p.ID, errdefs.ErrInvalidArgument)
	case !filepath.IsAbs(p.NetNS):
		return fmt.Errorf("network namespace %q of pod %s: must be an absolute path: %w", p.NetNS, p, errdefs.ErrInvalidArgument)
	}
	_, err := p.hostPorts()
	return err
}

// port is a validated host port.
type port struct {
	Protocol  string     `json:"protocol"`
	Host      uint16     `json:"host"`
	Container uint16     `json:"container"`
	Address   netip.Addr `json:"address,omitzero"` // invalid: every address of the host
}

func (p port) String() string {
	if !p.Address.IsValid() {
		return fmt.Sprintf("%d/%s", p.Host, p.Protocol)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.Address, p.Host), p.Protocol)
}

// conflicts reports whether a packet could be meant for either of two ports.
func (p port) conflicts(q port) bool {
	if p.Protocol != q.Protocol || p.Host != q.Host {
		return false
	}
	switch {
	case !p.Address.IsValid() || !q.Address.IsValid():
		return true
	case p.Address.Is4() != q.Address.Is4():
		return false
	default:
		return p.Address == q.Address || p.Address.IsUnspecified() || q.Address.IsUnspecified()
	}
}

// serves reports whether the port takes packets to addresses of the family of pod address a.
func (p port) serves(a netip.Addr) bool {
	return !p.Address.IsValid() || p.Address.Is4() == a.Is4()
}

// hostPorts validates the port mappings and returns those that ask for a host port.
func (p Pod) hostPorts() ([]port, error) {
	var ports []port
	for i, m := range p.PortMappings {
		valid, err := m.validate()
		if err != nil {
			return nil, fmt.Errorf("port_mappings[%d] of pod %s: %w", i, p, err)
		}
		if m.HostPort == 0 {
			continue
		}
		duplicate := false
		for _, other := range ports {
			if other == valid {
				duplicate = true
			} else if other.conflicts(valid) {
				return nil, fmt.Errorf("port_mappings[%d] of pod %s: host port %s is asked for twice: %w", i, p, valid, errdefs.ErrInvalidArgument)
			}
		}
		if !duplicate {
			ports = append(ports, valid)
		}
	}
	return ports, nil
}

func (m PortMapping) validate() (port, error) {
	refuse := func(field string, value any, reason string) (port, error) {
		return port{}, fmt.Errorf("%s %v: %s: %w", field, value, reason, errdefs.ErrInvalidArgument)
	}
	valid := port{Protocol: strings.ToLower(m.Protocol)}
	switch valid.Protocol {
	case "":
		valid.Protocol = TCP
	case TCP, UDP, SCTP:
	default:
		return refuse("protocol", m.Protocol, "want tcp, udp or sctp")
	}
	if m.HostPort < 0 || m.HostPort > 65535 {
		return refuse("host_port", m.HostPort, "want 1 to 65535, or 0 for none")
	}
	if m.ContainerPort < 1 || m.ContainerPort > 65535 {
		if m.HostPort == 0 && m.ContainerPort == 0 {
			return valid, nil
		}
		return refuse("container_port", m.ContainerPort, "want 1 to 65535")
	}
	valid.Host, valid.Container = uint16(m.HostPort), uint16(m.ContainerPort)
	if m.HostIP != "" {
		address, err := netip.ParseAddr(m.HostIP)
		if err != nil || address.Zone() != "" {
			return refuse("host_ip", m.HostIP, "want an IPv4 or IPv6 address")
		}
		valid.Address = address.Unmap()
	}
	return valid, nil
}
