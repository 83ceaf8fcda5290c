// Package conformance runs critest, the conformance suite of the Container Runtime Interface, against a fresh node.
//
// critest is built from the module that tools/go.mod pins. The images which it pulls are made here, for there is no way
// out of the machine while it runs: busybox is compiled from Debian's source so that every applet is a program of its
// own, nginx and Apache are Debian's, the rest are small. They are served by a docker-registry on the loopback
// interface, which the node knows as a mirror of registry.k8s.io, k8s.gcr.io and gcr.io.
//
// The suite takes a minute or so, needs root and Debian, and uses ports of the host which it chooses itself, so `go test`
// runs it only if OCI runtime, network and protocol are given; `make conformance` does.
package conformance
