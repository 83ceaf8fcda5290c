// Program guest runs in the virtual machine: it runs the steps of the plan and sends what they say to the host.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/berth-runtime/berth/test/vm"
)

// grace is what a step gets after SIGQUIT to say where its goroutines are.
const grace = 10 * time.Second

func main() {
	// The last word is for the console: systemd powers the machine off either way, and the host sees what is missing.
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
}

func run() (err error) {
	port, err := os.OpenFile(vm.Port, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("reach the host: %w", err)
	}
	defer func() { err = errors.Join(err, port.Close()) }()
	steps, err := vm.ReadPlan()
	if err != nil {
		return err
	}
	if err := warm(); err != nil {
		return err
	}
	events := &events{encoder: json.NewEncoder(port)}
	for _, s := range steps {
		begun := time.Now()
		end := vm.End{}
		if err := perform(s, &output{events, s.Name}); err != nil {
			end.Problem = err.Error()
		}
		end.Took = time.Since(begun)
		if err := events.send(vm.Event{Step: s.Name, End: &end}); err != nil {
			return err
		}
	}
	return nil
}

// modules are those which the kernel would load on first use. Here that takes so long that a test may exceed its timeout.
var modules = []string{
	"overlay", "veth", "bridge", "br_netfilter", "nf_tables", "nft_chain_nat", "nft_ct", "nft_fib_inet", "nft_masq", "nft_compat",
	"ip_tables", "iptable_nat", "ip6table_nat", "xt_MASQUERADE", "xt_comment", "xt_multiport", "tun",
}

// warm loads modules.
func warm() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "modprobe", append([]string{"-a"}, modules...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("load kernel modules: %w: %s", err, out)
	}
	return nil
}

// perform runs one step and everything that it starts.
func perform(s vm.Step, out *output) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.Deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Argv[0], s.Argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.Dir, append(os.Environ(), s.Env...), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT) }
	cmd.WaitDelay = grace
	err := cmd.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("still running after %v: %w", s.Deadline, err)
	}
	return err
}

// events is the way to the host.
type events struct {
	mu      sync.Mutex
	encoder *json.Encoder
}

func (e *events) send(event vm.Event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.encoder.Encode(event); err != nil {
		return fmt.Errorf("send an event to the host: %w", err)
	}
	return nil
}

// output sends what a step writes.
type output struct {
	events *events
	step   string
}

func (o *output) Write(p []byte) (int, error) {
	if err := o.events.send(vm.Event{Step: o.step, Output: string(p)}); err != nil {
		return 0, err
	}
	return len(p), nil
}
