// Package ociruntime drives OCI runtimes (runc, crun, runsc) as commands: their
// command lines, their deadlines, the errors in their own log, and what each of
// them supports on this host.
package ociruntime

// TypeOCI is the type of a handler whose runtime is a command with the command line of runc.
const TypeOCI = "oci"

// TypeShimV2 is the type of a handler whose runtime is a containerd shim: a process that serves tasks, see package shimv2.
const TypeShimV2 = "shim-v2"

// The annotations that runtimes with sandboxes look at: whether a container stands for its pod, and which pod that is.
// The names are containerd's.
const (
	AnnotationContainerType = "io.kubernetes.cri.container-type"
	AnnotationSandboxID     = "io.kubernetes.cri.sandbox-id"
)

// The values of AnnotationContainerType.
const (
	ContainerTypeSandbox   = "sandbox"
	ContainerTypeContainer = "container"
)

// Handler is one configured OCI runtime.
type Handler struct {
	// Name is how pods ask for it.
	Name string
	// Type is TypeOCI or TypeShimV2.
	Type string
	// Path is the program, absolute or to be found in PATH.
	Path string
	// Root is where the runtime keeps its own state.
	Root string
	// SystemdCgroup makes the runtime create cgroups through systemd.
	SystemdCgroup bool
	// Options are further global flags of the runtime: "debug": "true" is given as --debug=true. A shim has its own.
	Options map[string]string
}

// Features are what a runtime supports on this host.
type Features struct {
	// Program is what the runtime calls itself: runc, crun, runsc. It is empty for a shim.
	Program string
	// Version is the runtime's own, OCIVersion the newest version of the runtime specification it accepts.
	Version, OCIVersion string
	// RecursiveReadOnly: mounts may be read-only with all that is mounted below them.
	RecursiveReadOnly bool
	// UserNamespaces: containers can be in a user namespace. If not, UserNamespacesProblem says why.
	UserNamespaces        bool
	UserNamespacesProblem string
	// Checkpoint: the runtime is made for writing containers down and restoring them with CRIU.
	Checkpoint bool
	// Sandboxing: containers run on a kernel of their own, which those of a pod share where a container stands for the pod.
	Sandboxing bool
	// MountOptions are the mount options it knows, empty when it does not say.
	MountOptions []string
}
