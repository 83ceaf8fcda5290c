package cgroup

import "os"

// The names of drivers in Berth's configuration.
const (
	driverSystemd  = "systemd"
	driverCgroupfs = "cgroupfs"
)

// What is there when systemd runs this machine and takes orders.
const (
	systemdRuns = "/run/systemd/system"
	messageBus  = "/run/dbus/system_bus_socket"
)

// ChooseDriver returns the driver that a name means on this host. Any name but
// "systemd" and "cgroupfs" leaves the choice to the host: systemd where it runs and
// can be asked, cgroupfs elsewhere.
func ChooseDriver(name string) Driver {
	switch name {
	case driverSystemd:
		return Systemd
	case driverCgroupfs:
		return Cgroupfs
	}
	for _, needed := range []string{systemdRuns, messageBus} {
		if _, err := os.Stat(needed); err != nil {
			return Cgroupfs
		}
	}
	return Systemd
}
