package systemd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/godbus/dbus/v5"

	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

const testDeadline = 30 * time.Second

// busConfig lets everybody on the bus do everything.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>custom</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy>
</busconfig>`

// startBus runs a message bus of our own and makes it the system bus of this
// process. systemd itself cannot run beside the init of a machine, so a
// manager stands in for it on that bus.
func startBus(t *testing.T) {
	leakcheck.Check(t)
	dir := leakcheck.Dir(t)
	socket := filepath.Join(dir, "bus")
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, socket), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "dbus-daemon", "--config-file="+config, "--nofork", "--nopidfile", "--print-address=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start dbus-daemon (install dbus): %v", err)
	}
	t.Cleanup(func() {
		cancel()
		if err := cmd.Wait(); err == nil {
			t.Error("dbus-daemon ended by itself")
		}
	})
	// The address is printed once the bus listens.
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("wait for dbus-daemon: %v", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socket)
}

// manager answers as systemd's manager does.
type manager struct {
	conn *dbus.Conn

	// mu guards what follows.
	mu sync.Mutex
	// units are the slices that run.
	units map[string]map[string]dbus.Variant
	// result is how jobs end.
	result string
	// silent jobs never end.
	silent bool
	jobs   uint32
}

// Subscribe is called by clients that want signals.
func (m *manager) Subscribe() *dbus.Error { return nil }

// StartTransientUnit starts a unit that has no file.
func (m *manager) StartTransientUnit(name, _ string, properties []property, _ []auxiliary) (dbus.ObjectPath, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.units[name]; ok {
		return "", dbus.NewError(errUnitExists, []any{"Unit " + name + " already exists."})
	}
	m.units[name] = map[string]dbus.Variant{}
	for _, p := range properties {
		m.units[name][p.Name] = p.Value
	}
	return m.job(name)
}

// StopUnit stops a unit.
func (m *manager) StopUnit(name, _ string) (dbus.ObjectPath, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.units[name]; !ok {
		return "", dbus.NewError(errNoSuchUnit, []any{"Unit " + name + " not loaded."})
	}
	delete(m.units, name)
	return m.job(name)
}

// job makes a job; the caller holds the lock. Another
// job ends first, as happens on a busy machine, and the new one before its
// caller has the answer.
func (m *manager) job(unit string) (dbus.ObjectPath, *dbus.Error) {
	m.jobs++
	path := dbus.ObjectPath(fmt.Sprintf("/org/freedesktop/systemd1/job/%d", m.jobs))
	if m.silent {
		return path, nil
	}
	signal := managerInterface + ".JobRemoved"
	if err := errors.Join(
		m.conn.Emit(objectPath, signal, m.jobs+1000, dbus.ObjectPath("/other/job"), "other.service", "failed"),
		m.conn.Emit(objectPath, signal, m.jobs, path, unit, m.result),
	); err != nil {
		return "", dbus.MakeFailedError(err)
	}
	return path, nil
}

// set says how jobs end from now on, if they do.
func (m *manager) set(result string, silent bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.result, m.silent = result, silent
}

func startManager(t *testing.T) *manager {
	startBus(t)
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatalf("connect to the bus: %v", err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	m := &manager{conn: conn, units: map[string]map[string]dbus.Variant{}, result: "done"}
	if err := conn.Export(m, objectPath, managerInterface); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(busName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return m
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testDeadline)
	t.Cleanup(cancel)
	return ctx
}

// TestSlice starts and stops a slice, twice each.
func TestSlice(t *testing.T) {
	privilege.Root(t)
	m := startManager(t)
	for range 2 {
		if err := Start(deadline(t), "berth-test.slice"); err != nil {
			t.Fatalf("Start: %v", err)
		}
	}
	m.mu.Lock()
	properties := maps.Clone(m.units["berth-test.slice"])
	m.mu.Unlock()
	if properties["MemoryAccounting"].Value() != true {
		t.Errorf("properties: got %v, want accounting of memory", properties)
	}
	for range 2 {
		if err := Stop(deadline(t), "berth-test.slice"); err != nil {
			t.Fatalf("Stop: %v", err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.units) != 0 {
		t.Errorf("after Stop: got %v, want no slice", m.units)
	}
}

// TestFailedJob expects the result of a job that failed in the error.
func TestFailedJob(t *testing.T) {
	privilege.Root(t)
	m := startManager(t)
	m.set("dependency", false)
	if err := Start(deadline(t), "berth-test.slice"); err == nil || !strings.Contains(err.Error(), "dependency") {
		t.Errorf("got %v, want an error with the result", err)
	}
}

// TestHangingJob expects that the wait ends with the caller's context.
func TestHangingJob(t *testing.T) {
	privilege.Root(t)
	m := startManager(t)
	m.set("", true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := Start(ctx, "berth-test.slice"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
}

// TestNoBus expects a kind of error that can be distinguished where systemd is
// not there.
func TestNoBus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
	if err := Start(deadline(t), "berth-test.slice"); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v, want unavailable", err)
	}
}
