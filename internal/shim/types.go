package shim

import (
	"log/slog"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/notify"
	"github.com/berth-runtime/berth/internal/ociruntime"
)

// Options say which supervisor to connect to.
type Options struct {
	// State is the daemon's state directory; the supervisor's own is State/shim.
	State string
	// Binary is the berth-shim program, started when no supervisor answers.
	Binary string
	// Instance tells several daemons on one host apart: "" or a short hash. It names the supervisor's cgroup.
	Instance string
	// OpenFiles is the soft limit of open files of OCI runtimes; 0 is that of this process.
	OpenFiles uint64
	// Store keeps descriptors for the next daemon; nil if there is none.
	Store *notify.Store
	// Log receives what the client has to say.
	Log *slog.Logger
}

// StartRequest describes a container to run.
type StartRequest struct {
	// ID and SandboxID are the container's and its pod's.
	ID, SandboxID string
	// Sandboxed: the container with the ID SandboxID runs, and this one is to run in its sandbox.
	Sandboxed bool
	// Bundle is the OCI bundle: config.json and rootfs, both in place.
	Bundle string
	// Handler is the OCI runtime to use.
	Handler ociruntime.Handler
	// Terminal, Stdin and StdinOnce are as in the container's configuration;
	// Terminal must equal process.terminal of config.json.
	Terminal, Stdin, StdinOnce bool
	// LogPath is the CRI log file; empty means that output is read and discarded.
	LogPath string
	// LogDirectory is what LogPath is below. No symbolic link below it is followed: containers may control what is in there.
	LogDirectory string
	// LogLimit is how many bytes of log may be written per second; 0 is no limit.
	LogLimit int64
	// CgroupPath is the container's cgroup, relative to the cgroup mounts, to read OOM kills and to find its processes.
	CgroupPath string
	// Deadline bounds the OCI runtime; 0 means DefaultDeadline.
	Deadline time.Duration
	// Label is the SELinux label of files that the container may use; its stdio
	// get it. Empty without SELinux.
	Label string
	// Restore is set for a container whose processes go on from a checkpoint.
	Restore *Restore
}

// LogTotals are counters over the logs of all containers since the start of the supervisor.
type LogTotals struct {
	// Written and Dropped are bytes of log, and bytes of output that could not be logged.
	Written, Dropped uint64
	// Throttled is how long output has waited for the limit of its container.
	Throttled time.Duration
}

// Restore says which checkpoint a container goes on from.
type Restore struct {
	// Images is the directory that Checkpoint wrote into.
	Images string
	// LSMProfile is the security label of the processes, "selinux:LABEL" or
	// "apparmor:PROFILE"; empty means the one of the checkpoint.
	LSMProfile string
	// LSMMountContext replaces the SELinux context of the mounts.
	LSMMountContext string
}

// CheckpointRequest says where to write a container down.
type CheckpointRequest struct {
	// ID is the container's.
	ID string
	// Images and Work are existing directories: for the images of the
	// processes, and for CRIU's log and figures.
	Images, Work string
	// Deadline bounds the OCI runtime; 0 means DefaultDeadline.
	Deadline time.Duration
}

// DefaultDeadline bounds the OCI runtime when a request does not.
const DefaultDeadline = 2 * time.Minute

// Started says that a container runs, or has run.
type Started struct {
	// PID is the container's init process, in the host's PID namespace.
	PID int
	// At is when the OCI runtime had started it.
	At time.Time
}

// Exit says how a container's init process ended.
type Exit struct {
	// ID is the container's, or the infra process's.
	ID string
	// Code is the exit code, 128 + signal when a signal ended it.
	Code int
	// Known is false when the status could not be learned; Reason then says why, and Code is 255.
	Known bool
	// Signal ended the process, or 0.
	Signal int
	// OOM is true when the kernel killed a process of the container's cgroup for lack of memory.
	OOM bool
	// Reason explains an exit that is not Known.
	Reason string
	// At is when the exit was seen.
	At time.Time
}

// Container is what the supervisor knows of one.
type Container struct {
	// ID and SandboxID are those of the request; an infra process has no SandboxID.
	ID, SandboxID string
	// PID is that of the init process, also after it ended.
	PID int
	// Running is false once the exit is recorded.
	Running bool
	// Started is when the OCI runtime had started it.
	Started time.Time
	// Exit is nil while the container runs.
	Exit *Exit
	// DroppedLogBytes counts output that could not be written to the log file.
	DroppedLogBytes uint64
}

// ExecRequest describes a process to run inside a container.
type ExecRequest struct {
	// ContainerID and ID name the process; ID is unique within the container.
	ContainerID, ID string
	// Process is what to run.
	Process *specs.Process
	// Terminal asks for a console; then Stdin, Stdout and Stderr stay nil.
	Terminal bool
	// Stdin, Stdout and Stderr become the process's own; nil is /dev/null. Exec closes them, whatever it returns.
	Stdin, Stdout, Stderr *os.File
	// Deadline bounds the start of the process, not its run; 0 means DefaultDeadline.
	Deadline time.Duration
}

// InfraRequest describes the process which holds a pod's PID namespace open.
type InfraRequest struct {
	// ID names it; the sandbox's ID.
	ID string
	// NetNS, IPC and UTS are namespaces to join; empty means the host's.
	NetNS, IPC, UTS string
	// User is a user namespace that owns the PID namespace; empty means the host's. The process has UID and GID in there.
	User     string
	UID, GID uint32
	// CgroupPath is an existing cgroup to place it in; empty means the supervisor's own.
	CgroupPath string
	// MountLabel and ProcessLabel are the SELinux labels of its root and of itself; empty for none.
	MountLabel, ProcessLabel string
	// AppArmor is the profile that confines it; empty for none.
	AppArmor string
}
