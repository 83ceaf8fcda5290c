// Package berthv1 is the API that a Berth node offers beside the CRI, on the
// same socket: what the CRI has no words for. It is generated from node.proto.
package berthv1

//go:generate sh -c "protoc -I . --plugin=protoc-gen-go=$(go tool -n -modfile=../../../tools/go.mod protoc-gen-go) --plugin=protoc-gen-go-grpc=$(go tool -n -modfile=../../../tools/go.mod protoc-gen-go-grpc) --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative node.proto"
