// Package integration tests the programs as a kubelet and its users see them: a real berthd with berth-shim, crun and
// runc, real namespaces, cgroups, CNI plugins and a real registry. Every test ends with the leak check.
//
// The files follow what Berth promises: images, pods, containers, network, commands, streams, the command line, what bad
// input gets, and what survives when a program is killed.
package integration
