package proc

import (
	"bytes"
	"fmt"
	"os"
)

// IsHostRoot tells whether a process runs as root in the PID, mount and user namespaces of this
// process: no process of a container or of an unprivileged user does. One that has ended does not.
func IsHostRoot(pid int) bool {
	for _, kind := range []string{"pid", "mnt", "user"} {
		own, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return false
		}
		if other, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err != nil || other != own {
			return false
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	_, rest, found := bytes.Cut(status, []byte("\nUid:"))
	ids, _, _ := bytes.Cut(rest, []byte("\n"))
	for id := range bytes.FieldsSeq(ids) { // real, effective, saved and that for files
		if string(id) != "0" {
			return false
		}
	}
	return found
}
