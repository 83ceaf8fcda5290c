package conformance

import (
	"fmt"
	"os"
	"strings"
)

// excuse is why a spec may be skipped. There is no other reason: every other skip is a failure.
type excuse struct {
	// message begins the reason that the spec gives.
	message string
	// why says it in our words.
	why string
	// holds returns whether it is true on this machine.
	holds func() (bool, error)
}

var excuses = []excuse{
	{
		message: "AppArmor is disabled on this host",
		why:     "the kernel has no AppArmor",
		holds:   func() (bool, error) { return kernelLacks("/sys/module/apparmor/parameters/enabled") },
	},
}

// kernelLacks looks at a switch of the kernel: a file that says Y if it is on.
func kernelLacks(file string) (bool, error) {
	data, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a feature of the kernel: %w", err)
	}
	return strings.TrimSpace(string(data)) != "Y", nil
}

// excused returns the excuse for a skip.
func excused(s spec) (excuse, error) {
	for _, e := range excuses {
		if !strings.HasPrefix(s.message, e.message) {
			continue
		}
		holds, err := e.holds()
		if err != nil {
			return e, err
		}
		if !holds {
			return e, fmt.Errorf("it says %q, but that is not so here", s.message)
		}
		return e, nil
	}
	return excuse{}, fmt.Errorf("nothing excuses %q", s.message)
}
