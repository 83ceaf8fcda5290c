package network

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// workerRole makes the test binary a daemon that connects and disconnects pods until it is killed; its value is the
// directory of its work.
const workerRole = "BERTH_NETWORK_TEST_WORKER"

// task is what the worker is given: the manager's options and pods with namespaces.
type task struct {
	ConfDir, Root string
	Pods          []Pod
}

// work connects and disconnects the pods of a task, in turn, for ever. As the pod engine does, it stores each plan before
// it acts and removes it when Detach has succeeded.
func work(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, "task"))
	if err != nil {
		return err
	}
	var t task
	if err := json.Unmarshal(raw, &t); err != nil {
		return err
	}
	ctx := context.Background()
	m, err := New(ctx, Options{ConfDir: t.ConfDir, BinDirs: []string{cniBin}, Root: t.Root, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	for {
		for _, pod := range t.Pods {
			plan, err := m.Plan(pod)
			if err != nil {
				return err
			}
			stored, err := json.Marshal(plan)
			if err != nil {
				return err
			}
			file := filepath.Join(dir, "plan-"+pod.ID)
			if err := os.WriteFile(file, stored, 0o600); err != nil {
				return err
			}
			if _, err := m.Attach(ctx, pod, plan); err != nil {
				return err
			}
			fmt.Println("attached", pod.Name)
			if err := m.Detach(ctx, pod, plan); err != nil {
				return err
			}
			if err := os.Remove(file); err != nil {
				return err
			}
		}
	}
}

// Whenever a daemon is killed, its successor undoes the stored plans and releases the leases without a plan.
// Afterwards the host is as before, and all addresses and ports are free.
func TestKilledAtAnyInstant(t *testing.T) {
	t.Run("Builtin", func(t *testing.T) { killAgainAndAgain(t, newRig(t, nil), 20, 40*time.Millisecond) })
	t.Run("CNI", func(t *testing.T) {
		killAgainAndAgain(t, withList(t, bridgeList("1.0.0", portmap), nil), 8, 500*time.Millisecond)
	})
}

func killAgainAndAgain(t *testing.T, r *rig, times int, within time.Duration) {
	job := task{ConfDir: r.options.ConfDir, Root: r.options.Root}
	for i := range 3 {
		job.Pods = append(job.Pods, r.pod(fmt.Sprint("pod", i), PortMapping{ContainerPort: 80, HostPort: int32(8080 + i)}))
	}
	raw, err := json.Marshal(job)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(r.dir, "task"), raw, 0o600))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range times {
		runAndKill(t, r.dir, time.Duration(random.Int64N(int64(within))))
		r.restart()
		for _, pod := range job.Pods {
			undoStored(t, r, pod)
		}
		must(t, r.Collect(t.Context(), nil))
		r.settle()
		if held := r.leases.all(); len(held) != 0 {
			t.Fatalf("leases are left: %+v", held[0])
		}
		if rules := ruleset(t); strings.Contains(rules, "8080") || strings.Contains(rules, "8081") {
			t.Fatalf("host ports are left:\n%s", rules)
		}
		if devices, err := r.bridge.devices(); err != nil || len(devices) != 0 {
			t.Fatalf("devices are left: %v (%v)", devices, err)
		}
	}
	for _, pod := range job.Pods {
		plan, err := r.Plan(pod)
		must(t, err)
		_, err = r.Attach(t.Context(), pod, plan)
		must(t, err)
		must(t, r.Detach(t.Context(), pod, plan))
	}
}

// runAndKill starts a worker, kills it some time after it has connected its first pod, and waits for its plugins' end.
func runAndKill(t *testing.T, dir string, after time.Duration) {
	t.Helper()
	worker := exec.Command("/proc/self/exe")
	worker.Env = append(os.Environ(), workerRole+"="+dir)
	worker.Stderr = os.Stderr
	worker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := worker.StdoutPipe()
	must(t, err)
	must(t, worker.Start())
	line := make([]byte, 100)
	if _, err := out.Read(line); err != nil {
		t.Errorf("worker connected no pod: %v", err)
	}
	time.Sleep(after) // the instant is what the test is about
	must(t, worker.Process.Kill())
	if err := worker.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("worker ended by itself: %v", err)
	}
}

func undoStored(t *testing.T, r *rig, pod Pod) {
	t.Helper()
	file := filepath.Join(r.dir, "plan-"+pod.ID)
	raw, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return
	}
	must(t, err)
	var plan Plan
	if json.Unmarshal(raw, &plan) == nil { // killed while writing: nothing was done
		must(t, r.Detach(t.Context(), pod, plan))
	}
	must(t, os.Remove(file))
}
