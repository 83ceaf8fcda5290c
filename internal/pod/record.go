package pod

import (
	"time"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/internal/network"
	"github.com/berth-runtime/berth/internal/pod/machine"
	"github.com/berth-runtime/berth/internal/selinux"
	"github.com/berth-runtime/berth/internal/warning"
)

// message is a protobuf message inside a JSON record. Fields that this version
// does not know are dropped on reading, so that a downgrade can read it.
type message[M proto.Message] struct{ M M }

// MarshalJSON writes the message in protobuf's JSON form.
func (m message[M]) MarshalJSON() ([]byte, error) {
	return protojson.Marshal(m.M)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (m *message[M]) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	m.M = m.M.ProtoReflect().New().Interface().(M)
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, m.M)
}

// sandboxRecord is the record of a sandbox. It holds all that an
// undo needs before anything is done.
type sandboxRecord struct {
	ID        string                                `json:"id"`
	Config    message[*runtimeapi.PodSandboxConfig] `json:"config"`
	Handler   string                                `json:"handler"`
	CreatedAt time.Time                             `json:"createdAt"`
	Machine   machine.Record                        `json:"machine"`
	// Listed is false until the sandbox was ready once: a half-made one is
	// ours alone.
	Listed bool `json:"listed"`
	// Network is decided before the network is touched.
	Network *network.Plan `json:"network,omitempty"`
	// IPs are known once the network is up.
	IPs []string `json:"ips,omitempty"`
	// Namespaces are the pinned ones.
	Namespaces namespace.Paths `json:"namespaces"`
	// NetNS is where plugins and tools find the network namespace, decided before it is made. Sandboxes of earlier versions
	// have none: theirs is with the other namespaces only.
	NetNS string `json:"netns,omitempty"`
	// Labels are those of SELinux.
	Labels selinux.Labels `json:"labels,omitzero"`
	// CgroupParent holds the cgroups of the containers.
	CgroupParent string `json:"cgroupParent"`
	// OwnsParent tells that the parent was not there before: we remove it.
	OwnsParent bool `json:"ownsParent"`
	// PID is the process which holds a shared PID namespace.
	PID int `json:"pid,omitempty"`
	// Overhead and Resources are what the pod as a whole was given last.
	Overhead  message[*runtimeapi.LinuxContainerResources] `json:"overhead,omitzero"`
	Resources message[*runtimeapi.LinuxContainerResources] `json:"resources,omitzero"`
	// Problem says why the sandbox is not ready although no request stopped it.
	Problem string `json:"problem,omitempty"`
	// Warnings are the unsupported parts of the request.
	Warnings warning.List `json:"warnings,omitempty"`
	// Sysctls are those of the request with the defaults. Sandboxes of earlier versions have none.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// ShmBytes is the size of /dev/shm, 0 in sandboxes of earlier versions.
	ShmBytes int64 `json:"shmBytes,omitempty"`
	// Timezone is that of the file localtime beside resolv.conf; empty without one.
	Timezone string `json:"timezone,omitempty"`
	// Defaults are the values that the pod got by default, by the key of the table [pod].
	Defaults map[string]string `json:"defaults,omitempty"`
}

// containerRecord is the record of a container.
type containerRecord struct {
	ID         string                                       `json:"id"`
	SandboxID  string                                       `json:"sandboxID"`
	Config     message[*runtimeapi.ContainerConfig]         `json:"config"`
	CreatedAt  time.Time                                    `json:"createdAt"`
	StartedAt  time.Time                                    `json:"startedAt,omitzero"`
	FinishedAt time.Time                                    `json:"finishedAt,omitzero"`
	Machine    machine.Record                               `json:"machine"`
	Listed     bool                                         `json:"listed"`
	ImageID    string                                       `json:"imageID"`
	ImageRef   string                                       `json:"imageRef"`
	Volumes    []volumeRecord                               `json:"volumes,omitempty"`
	Declared   declaredVolumes                              `json:"declaredVolumes,omitzero"`
	LogPath    string                                       `json:"logPath,omitempty"`
	User       message[*runtimeapi.ContainerUser]           `json:"user,omitzero"`
	StopSignal string                                       `json:"stopSignal,omitempty"`
	Resources  message[*runtimeapi.LinuxContainerResources] `json:"resources,omitzero"`
	// Limits are those that only plugins can want, beside Resources.
	Limits message[*api.LinuxResources] `json:"limits,omitzero"`
	PID    int                          `json:"pid,omitempty"`
	// Labels are those of SELinux.
	Labels selinux.Labels `json:"labels,omitzero"`
	// From is the archive of the checkpoint that the container goes on from.
	From       string      `json:"from,omitempty"`
	CgroupPath string      `json:"cgroupPath"`
	Exit       *exitRecord `json:"exit,omitempty"`
	Problem    string      `json:"problem,omitempty"`
	// Warnings are the unsupported parts of the request.
	Warnings warning.List `json:"warnings,omitempty"`
	// Defaults are the values that the container got by default, by the key of the table [pod].
	Defaults map[string]string `json:"defaults,omitempty"`
}

// exitRecord is how a container ended, or why it could not start.
type exitRecord struct {
	Code    int32  `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}

// maxExitMessage bounds what a record keeps of an error, in bytes.
const maxExitMessage = 4 << 10

// The reasons of an exit, in the words that kubelet and its users know.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonUnknown    = "ContainerStatusUnknown"
)

// Exit codes of containers that did not end by themselves; kubelet's users
// know both from other runtimes.
const (
	codeStartError = 128
	codeUnknown    = 255
)

// save writes the record down. The first save with every step done is what
// makes the sandbox one that is listed.
func (s *sandbox) save() error {
	s.saving.Lock()
	defer s.saving.Unlock()
	if s.forgotten {
		return nil
	}
	s.mu.Lock()
	rec := s.rec
	rec.Listed = rec.Listed || s.state.Goal == sandboxReady && sandboxSteps.Complete(s.state)
	rec.Machine = sandboxSteps.Save(s.state)
	s.mu.Unlock()
	if err := s.engine.store.Write(s.engine.store.SandboxFile(rec.ID), rec); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec.Listed = rec.Listed
	return nil
}

// forget removes the record; nothing of the sandbox is left.
func (s *sandbox) forget() error {
	e := s.engine
	s.tellRemoved(e.drivers.ctx)
	s.saving.Lock()
	s.forgotten = true
	err := e.store.RemoveSandbox(s.rec.ID)
	s.saving.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sandboxes.remove(s)
	e.releaseLabels(s.rec.Labels)
	delete(e.names, sandboxName(s.rec.Config.M.GetMetadata()))
	return err
}

// save writes the record down. The first save with every step done is what
// makes the container one that is listed.
func (c *container) save() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	if c.forgotten {
		return nil
	}
	c.mu.Lock()
	rec := c.rec
	rec.Listed = rec.Listed || c.state.Goal == containerCreated && containerSteps.Complete(c.state)
	rec.Machine = containerSteps.Save(c.state)
	c.mu.Unlock()
	if err := c.engine.store.Write(c.engine.store.ContainerFile(rec.SandboxID, rec.ID), rec); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.Listed, c.exitKept = rec.Listed, rec.Exit != nil
	return nil
}

// keepExit has the exit in the record on disk: the supervisor is about to
// forget it, and then a successor could not learn it.
func (c *container) keepExit() error {
	c.mu.Lock()
	kept := c.exitKept || c.rec.Exit == nil
	c.mu.Unlock()
	if kept {
		return nil
	}
	return c.save()
}

// forget removes the record; nothing of the container is left.
func (c *container) forget() error {
	e := c.engine
	c.saving.Lock()
	c.forgotten = true
	err := e.store.RemoveContainer(c.rec.SandboxID, c.rec.ID)
	c.saving.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.containers.remove(c)
	e.releaseLabels(c.rec.Labels)
	delete(c.sandbox.containers, c.rec.ID)
	delete(e.names, containerName(c.rec.SandboxID, c.rec.Config.M.GetMetadata()))
	return err
}
