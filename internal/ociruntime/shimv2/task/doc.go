// Package task has the messages of containerd's task service, as far as Berth sends and reads them. The published ones
// bring what a whole daemon needs; these cost berth-shim a fifth of their memory.
package task

//go:generate sh -c "protoc -I . --plugin=protoc-gen-go=$(go tool -n -modfile=../../../../tools/go.mod protoc-gen-go) --go_out=. --go_opt=paths=source_relative task.proto"
