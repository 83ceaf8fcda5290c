// Package shim is the daemon's side of the supervisor, berth-shim: it starts one
// for a state directory when there is none, finds it again after a restart, and
// asks it to run containers.
//
// The daemon and the supervisor are each other's store of descriptors. For every
// running process the client keeps a pidfd, the read ends of its output FIFOs,
// its console and the write end of its stdin; when the supervisor dies, the client
// starts a successor and hands them back, so that no exit code, no output and no
// terminal is lost. When the daemon dies, Connect fetches them again. Those of
// containers are also kept by the service manager, where it has a store, for the case
// that both die at once.
//
// Exits are delivered at least once; an exit which happened while no daemon was
// there is delivered to the next one, until its container is deleted.
package shim
