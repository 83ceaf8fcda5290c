// Package wire is the protocol between the daemon and its supervisor: the calls
// (ttrpc, generated from shim.proto), the descriptors that travel beside them on
// a second socket, and the errors of both.
//
//	daemon                                      berth-shim
//	  | Hello(session)           ---- shim.sock ---> |  ends what older sessions left half way
//	  | put container/ID + fds   ---- fd.sock   ---> |  only to a successor: descriptors kept for it
//	  | get container/ID         ---- fd.sock   ---> |  pidfd, FIFO readers, stdin, console
//	  | Settle(session)          ---- shim.sock ---> |  an exit that no one reported is unknown
//	  | Start, Exec, Attach, …   ---- shim.sock ---> |
//	  | NextExits(cursor)        ---- shim.sock ---> |  answers when the journal has more
//
// Either side may die at each arrow. The daemon repeats a call on the next
// connection; the supervisor answers a repeated call with the outcome of the first.
package wire

//go:generate sh -c "protoc -I . --plugin=protoc-gen-go=$(go tool -n -modfile=../../../tools/go.mod protoc-gen-go) --plugin=protoc-gen-go-ttrpc=$(go tool -n -modfile=../../../tools/go.mod protoc-gen-go-ttrpc) --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative shim.proto"

// Names of the two sockets and of the launch lock in the supervisor's directory.
const (
	// Socket carries the calls.
	Socket = "shim.sock"
	// FDSocket carries descriptors.
	FDSocket = "fd.sock"
	// LogFile is the supervisor's own log.
	LogFile = "shim.log"
	// LaunchLock is held while a supervisor is looked for or started, so that there is only one.
	LaunchLock = "launch.lock"
	// ServeLock is held by the supervisor that serves.
	ServeLock = "serve.lock"
)
