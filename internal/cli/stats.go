package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// statsInterval is how often a screen is redrawn, leastInterval what may
	// be asked for.
	statsInterval = 2 * time.Second
	leastInterval = 200 * time.Millisecond
	// rateGap is between the two readings from which a rate is computed where
	// the runtime tells none.
	rateGap = time.Second
)

// statsFlags are those of the stats command.
type statsFlags struct {
	watch, once, noTrunc bool
	interval             time.Duration
}

func (a *app) statsCommand() *cobra.Command {
	f := statsFlags{}
	cmd := &cobra.Command{
		Use:   "stats [POD|CONTAINER…]",
		Short: "Show resource usage of containers",
		Long: `Show resource usage of running containers: all of them, or those of the named pods and containers.

On a terminal the table is refreshed until interrupted; otherwise it is printed once. 100 percent of CPU is one CPU.
Network traffic is that of the pod. Pressure is the share of the last ten seconds in which some task waited for CPU,
memory and I/O (PSI). "-": not reported by the runtime.`,
		RunE: func(cmd *cobra.Command, words []string) error {
			if f.watch && f.once {
				return &usageError{cmd: cmd, err: errors.New("--watch and --no-stream exclude each other")}
			}
			if f.interval < leastInterval {
				return &usageError{cmd: cmd, err: fmt.Errorf("--interval %v: want at least %v", f.interval, leastInterval)}
			}
			return a.with(cmd.Context(), func(ctx context.Context, n *node) error { return a.stats(ctx, n, f, words) })
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&f.watch, "watch", "w", false, "refresh continuously, even without a terminal")
	flags.BoolVar(&f.once, "no-stream", false, "print once, even on a terminal")
	flags.DurationVar(&f.interval, "interval", statsInterval, "refresh interval")
	flags.BoolVar(&f.noTrunc, "no-trunc", false, "show IDs in full")
	return cmd
}

func (a *app) stats(ctx context.Context, n *node, f statsFlags, words []string) error {
	match, err := n.statsMatch(ctx, words)
	if err != nil {
		return err
	}
	use := &usages{node: n}
	_, screen := terminal(a.Out)
	screen = screen && a.format == formatTable
	if f.watch || screen && !f.once {
		return a.watchStats(ctx, use, match, f, screen)
	}
	items, err := use.read(ctx, match)
	if err == nil && use.needed {
		pause(ctx, rateGap)
		items, err = use.read(ctx, match)
	}
	if err != nil {
		return fmt.Errorf("read stats: %w", err)
	}
	return a.show(items, func() *table { return usageTable(items, f.noTrunc) })
}

// watchStats goes on until it is interrupted. A daemon that
// restarts is waited for.
func (a *app) watchStats(ctx context.Context, use *usages, match statsMatch, f statsFlags, screen bool) error {
	for ctx.Err() == nil {
		items, err := use.read(ctx, match)
		if err == nil {
			err = a.showFrame(items, f, screen)
		}
		if err != nil && ctx.Err() == nil && !temporary(err) {
			return fmt.Errorf("read stats: %w", err)
		}
		pause(ctx, f.interval)
	}
	return nil
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// statsMatch tells whether a container is among those that were asked for.
type statsMatch func(*runtimeapi.ContainerStats) bool

// statsMatch tells which containers are meant by words; all by none. Of a pod
// that is named, containers made later count too.
func (n *node) statsMatch(ctx context.Context, words []string) (statsMatch, error) {
	if len(words) == 0 {
		return func(*runtimeapi.ContainerStats) bool { return true }, nil
	}
	all, err := n.inventory(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	wanted := map[string]bool{}
	for _, word := range words {
		t, err := all.find(word)
		if err != nil {
			return nil, err
		}
		wanted[t.id()] = true
		for _, c := range all.containersOf(t.id()) {
			wanted[c.Id] = true
		}
	}
	return func(st *runtimeapi.ContainerStats) bool { return wanted[st.Attributes.GetId()] }, nil
}

// showFrame prints one reading of many. A screen is cleared and filled in one write, so
// that it does not flicker.
func (a *app) showFrame(items []usageItem, f statsFlags, screen bool) error {
	if !screen {
		return a.show(items, func() *table { return usageTable(items, f.noTrunc) })
	}
	var frame bytes.Buffer
	frame.WriteString("\x1b[H\x1b[2J")
	if err := usageTable(items, f.noTrunc).write(&frame); err != nil {
		return err
	}
	_, err := a.Out.Write(frame.Bytes())
	return err
}

func usageTable(items []usageItem, noTrunc bool) *table {
	t := &table{head: []string{"CONTAINER ID", "POD", "NAME", "CPU", "MEMORY", "LIMIT", "PIDS", "NET IN/OUT", "DISK READ/WRITTEN", "LAYER", "PRESSURE CPU/MEM/IO"}}
	for i := range items {
		u := &items[i]
		id := u.ID
		if !noTrunc {
			id = short(id)
		}
		cpu, pids, layer, pressure := "-", "-", "-", "-"
		if u.CPU.Percent != nil {
			cpu = strconv.FormatFloat(*u.CPU.Percent, 'f', 1, 64) + "%"
		}
		if u.Processes != nil {
			pids = strconv.FormatUint(*u.Processes, 10)
		}
		if u.Layer != nil {
			layer = size(u.Layer.Bytes)
		}
		if p := u.Pressure; p != nil {
			pressure = fmt.Sprintf("%.1f / %.1f / %.1f", p.CPU, p.Memory, p.IO)
		}
		t.add(id, u.Pod.Namespace+"/"+u.Pod.Name, u.Name, cpu, sizeOrDash(u.Memory.WorkingSet), sizeOrDash(u.Memory.Limit), pids,
			u.Network.text(), u.Disk.text(), layer, pressure)
	}
	return t
}

func sizeOrDash(bytes *uint64) string {
	if bytes == nil {
		return "-"
	}
	return size(*bytes)
}

func (t *trafficItem) text() string {
	if t == nil {
		return "-"
	}
	return size(t.In) + " / " + size(t.Out)
}
