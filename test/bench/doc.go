// Package bench measures what kubelet waits for, and what a pod costs, with the real programs on this machine. Run it with
// `make bench` on an idle machine; compare only figures of one machine.
package bench
