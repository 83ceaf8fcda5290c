// Package systemd starts and stops the slices that hold pods on hosts where
// systemd manages the cgroup tree.
//
// It is apart from package cgroup so that the supervisor, which needs that
// one, does not link D-Bus.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/godbus/dbus/v5"
)

const (
	busName          = "org.freedesktop.systemd1"
	objectPath       = dbus.ObjectPath("/org/freedesktop/systemd1")
	managerInterface = "org.freedesktop.systemd1.Manager"

	errNoSuchUnit = "org.freedesktop.systemd1.NoSuchUnit"
	errUnitExists = "org.freedesktop.systemd1.UnitExists"

	// jobQueue holds the signals that may arrive while one job is awaited.
	jobQueue = 64
)

// property is one setting of a transient unit, as systemd's interface wants it.
type property struct {
	Name  string
	Value dbus.Variant
}

// auxiliary is a unit to be started along; none is ever used here.
type auxiliary struct {
	Name       string
	Properties []property
}

// Start makes systemd start a slice ("berth-pods.slice"), with accounting of what Berth
// reports. On nil the slice is active, also if another process started it. A slice that a unit
// file describes keeps its settings.
func Start(ctx context.Context, slice string) error {
	properties := []property{
		{"Description", dbus.MakeVariant("Berth pods in " + slice)},
		{"CPUAccounting", dbus.MakeVariant(true)},
		{"MemoryAccounting", dbus.MakeVariant(true)},
		{"TasksAccounting", dbus.MakeVariant(true)},
		{"IOAccounting", dbus.MakeVariant(true)},
	}
	err := runJob(ctx, "StartTransientUnit", slice, "replace", properties, []auxiliary{})
	if hasDBusName(err, errUnitExists) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("start slice %s: %w", slice, err)
	}
	return nil
}

// Stop makes systemd stop a slice and everything in it. One that is not
// known to systemd is no error.
func Stop(ctx context.Context, slice string) error {
	err := runJob(ctx, "StopUnit", slice, "replace")
	if hasDBusName(err, errNoSuchUnit) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop slice %s: %w", slice, err)
	}
	return nil
}

func hasDBusName(err error, name string) bool {
	var failure dbus.Error
	return errors.As(err, &failure) && failure.Name == name
}

// runJob calls a method of systemd's manager that queues a job, and waits
// until the job has ended. Subscribing before the call makes it impossible to
// miss the end.
func runJob(ctx context.Context, method string, args ...any) (err error) {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("reach systemd over D-Bus: %w: %w", err, errdefs.ErrUnavailable)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	match := []dbus.MatchOption{
		dbus.WithMatchSender(busName), dbus.WithMatchObjectPath(objectPath),
		dbus.WithMatchInterface(managerInterface), dbus.WithMatchMember("JobRemoved"),
	}
	if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
		return fmt.Errorf("subscribe to systemd's jobs: %w", err)
	}
	signals := make(chan *dbus.Signal, jobQueue)
	conn.Signal(signals)
	manager := conn.Object(busName, objectPath)
	if err := manager.CallWithContext(ctx, managerInterface+".Subscribe", 0).Err; err != nil {
		return fmt.Errorf("subscribe to systemd's jobs: %w", err)
	}
	var job dbus.ObjectPath
	if err := manager.CallWithContext(ctx, managerInterface+"."+method, 0, args...).Store(&job); err != nil {
		return err
	}
	return awaitJob(ctx, signals, job)
}

// awaitJob waits for the end of a job and returns nil if it was done.
func awaitJob(ctx context.Context, signals <-chan *dbus.Signal, job dbus.ObjectPath) error {
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("await systemd's job: %w", ctx.Err())
		case signal, ok := <-signals:
			if !ok {
				return fmt.Errorf("await systemd's job: connection lost: %w", errdefs.ErrUnavailable)
			}
			var id uint32
			var path dbus.ObjectPath
			var unit, result string
			if err := dbus.Store(signal.Body, &id, &path, &unit, &result); err != nil || path != job {
				// Some other signal, NameAcquired for one.
				continue
			}
			if result != "done" && result != "skipped" {
				return fmt.Errorf("systemd's job on %s ended as %s: %w", strings.TrimSpace(unit), result, errdefs.ErrInternal)
			}
			return nil
		}
	}
}
