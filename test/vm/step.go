package vm

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

const (
	// Mountpoint is where the guest finds the disk with programs and tests.
	Mountpoint = "/berth"
	// PlanFile is the list of steps on that disk.
	PlanFile = Mountpoint + "/plan.json"
	// Port is the character device to which the guest writes events.
	Port = "/dev/virtio-ports/" + portName

	portName = "berth.events"
)

// Step is one program that runs in the machine.
type Step struct {
	// Name says what it proves, and in which configuration.
	Name string `json:"name"`
	// Argv is the command line; Dir is where it runs, and Env is set beside the guest's environment.
	Argv []string `json:"argv"`
	Dir  string   `json:"dir"`
	Env  []string `json:"env"`
	// Deadline is when it is killed. It says where its goroutines are, if it is a Go program.
	Deadline time.Duration `json:"deadline"`
}

// Event is one message of the guest.
type Event struct {
	// Step is the name of the step.
	Step string `json:"step"`
	// Output is what it has written since the last event.
	Output string `json:"output,omitempty"`
	// End is set by the last event of the step.
	End *End `json:"end,omitempty"`
}

// End is how a step ended.
type End struct {
	// Problem is empty if it succeeded.
	Problem string        `json:"problem,omitempty"`
	Took    time.Duration `json:"took"`
}

// ReadPlan reads the steps from the disk.
func ReadPlan() ([]Step, error) {
	data, err := os.ReadFile(PlanFile)
	if err != nil {
		return nil, fmt.Errorf("read the plan: %w", err)
	}
	var steps []Step
	if err := json.Unmarshal(data, &steps); err != nil {
		return nil, fmt.Errorf("understand the plan: %w", err)
	}
	return steps, nil
}
