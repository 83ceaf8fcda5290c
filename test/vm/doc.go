// Package vm runs tests on the host that most users have: a Debian with systemd, cgroup v2 and AppArmor or SELinux, in a
// virtual machine whose processor QEMU emulates, so that it runs where there is no virtualization.
//
// The machine has two disks and no network. The first is a Debian that debootstrap makes and a cache keeps; the second
// holds our programs, test binaries and critest, made for each run. A program on it, the guest, runs the steps of
// the plan one after another and sends what they say through a virtio port; then the machine powers off. What is written
// to the disks is forgotten.
//
// Under emulation everything is many times slower than on a real machine, so that nothing may be measured there.
// `make test-vm` runs the plan; docs/testing.md says how to run a single test or command.
package vm
