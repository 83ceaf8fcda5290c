// Package fuzz calls every RPC of a real berthd with messages that no client should send: nil, empty, extreme, and with the IDs of
// live objects in every field. It runs for a minute; `go test ./test/fuzz -duration 1h` takes longer.
package fuzz
