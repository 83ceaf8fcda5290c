package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

const (
	// criuConf holds options of CRIU, in the container's directory.
	criuConf = "criu.conf"
	// stdioFile is beside CRIU's images and tells which open files of the
	// container are its stdio: they lead out of it, so they are not in the images.
	stdioFile = "stdio.json"
	// maxStdioFile bounds what is read of it: a checkpoint comes from elsewhere.
	maxStdioFile = 64 << 10
)

// dumpOptions: connections are closed in what is restored, for it has another
// address; unlinked files that are still open are kept in the images up to 256 MiB.
const dumpOptions = "tcp-established\ntcp-close\nghost-limit 268435456\n"

// restoreOptions match dumpOptions.
const restoreOptions = "tcp-close\n"

// stdioKey is CRIU's name of an open file that it does not look into: mount ID and inode.
var stdioKey = regexp.MustCompile(`^file\[[0-9a-f]{1,16}:[0-9a-f]{1,16}\]$`)

// stdioFD are the descriptors of a process's stdio by the names of our FIFOs.
var stdioFD = map[string]int{stdinFIFO: 0, stdoutFIFO: 1, stderrFIFO: 2}

// restoreFrom says which checkpoint a container goes on from.
type restoreFrom struct {
	Images          string `json:"images"`
	LSMProfile      string `json:"lsm_profile,omitempty"`
	LSMMountContext string `json:"lsm_mount_context,omitempty"`
}

func restoreOf(m *wire.Restore) *restoreFrom {
	if m == nil {
		return nil
	}
	return &restoreFrom{Images: m.Images, LSMProfile: m.LsmProfile, LSMMountContext: m.LsmMountContext}
}

// Checkpoint writes the processes of a container down.
func (g *service) Checkpoint(ctx context.Context, req *wire.CheckpointRequest) (*wire.Empty, error) {
	return g.on(req.Id, func(c *container) error {
		for name, dir := range map[string]string{"images": req.Images, "work": req.Work} {
			if !filepath.IsAbs(dir) {
				return fmt.Errorf("%s %q is not an absolute path: %w", name, dir, errdefs.ErrInvalidArgument)
			}
		}
		if err := c.acquire(ctx); err != nil {
			return err
		}
		defer c.release()
		// What is begun is not cut off with the caller: CRIU has its hands in the processes.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), durationOf(req.DeadlineNano))
		defer cancel()
		return c.checkpoint(ctx, req)
	})
}

// checkpoint is Checkpoint. Preconditions: the caller holds the token.
func (c *container) checkpoint(ctx context.Context, req *wire.CheckpointRequest) error {
	if err := c.running(); err != nil {
		return err
	}
	rec := c.record()
	if rec.Infra {
		return fmt.Errorf("%s is an infra process: %w", c.id, errdefs.ErrInvalidArgument)
	}
	runtime, err := ociruntime.New(rec.Handler, c.s.children)
	if err != nil {
		return err
	}
	keys, err := c.stdioKeys(rec.Cgroup)
	if err != nil {
		return fmt.Errorf("find the stdio of container %s: %w", c.id, err)
	}
	text, err := json.Marshal(keys)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(req.Images, stdioFile), text, 0o600); err != nil {
		return fmt.Errorf("write what is stdio: %w", err)
	}
	var options []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		options = append(options, "external "+key+"\n")
	}
	config, err := c.writeCriuConf(dumpOptions, options)
	if err != nil {
		return err
	}
	err = runtime.Checkpoint(ctx, ociruntime.CheckpointRequest{ID: c.id, Images: req.Images, Work: req.Work, Config: config, Scratch: c.dir})
	return errors.Join(err, remove(config))
}

func (c *container) writeCriuConf(always string, more []string) (string, error) {
	config := filepath.Join(c.dir, criuConf)
	if err := os.WriteFile(config, []byte(always+strings.Join(more, "")), 0o600); err != nil {
		return "", fmt.Errorf("write CRIU's options: %w", err)
	}
	return config, nil
}

// stdioKeys finds the container's open files that are our FIFOs.
func (c *container) stdioKeys(cgroup string) (map[string]string, error) {
	type inode struct{ dev, ino uint64 }
	fifos := map[inode]string{}
	for name := range stdioFD {
		var st syscall.Stat_t
		err := syscall.Stat(filepath.Join(c.dir, name), &st)
		if errors.Is(err, os.ErrNotExist) {
			continue // it has a terminal, or no stdin
		}
		if err != nil {
			return nil, err
		}
		fifos[inode{st.Dev, st.Ino}] = name
	}
	keys := map[string]string{}
	if len(fifos) == 0 {
		return keys, nil
	}
	all, err := c.processes(cgroup)
	if err != nil {
		return nil, err
	}
	for _, process := range all {
		dir := fmt.Sprintf("/proc/%d/fd", process.PID)
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, entry := range entries {
			var st syscall.Stat_t
			if syscall.Stat(filepath.Join(dir, entry.Name()), &st) != nil {
				continue // closed meanwhile
			}
			name, ours := fifos[inode{st.Dev, st.Ino}]
			if !ours {
				continue
			}
			mount, err := mountID(fmt.Sprintf("/proc/%d/fdinfo/%s", process.PID, entry.Name()))
			if err != nil {
				return nil, err
			}
			keys[fmt.Sprintf("file[%x:%x]", mount, st.Ino)] = name
		}
	}
	return keys, nil
}

// mountID reads on which mount an open file is.
func mountID(fdinfo string) (uint64, error) {
	text, err := os.ReadFile(fdinfo)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "mnt_id:"); found {
			return strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s does not tell the mount: %w", fdinfo, errdefs.ErrInternal)
}

// launch runs the container's first process, or has the processes of a
// checkpoint go on.
func (c *container) launch(ctx context.Context, runtime *ociruntime.Runtime, rec *record, req ociruntime.RunRequest) error {
	from := rec.Restore
	if from == nil {
		return runtime.Run(ctx, req)
	}
	keys, err := readStdioFile(filepath.Join(from.Images, stdioFile))
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	var options []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		options = append(options, fmt.Sprintf("inherit-fd fd[%d]:%s\n", stdioFD[keys[key]], key))
	}
	if c.s.cfg.Cgroups.OnlyUnified() && rec.Cgroup != "" {
		// runc says this of v1 only: else they go on in the cgroup that they were in.
		options = append(options, "cgroup-root "+rec.Cgroup+"\n")
	}
	config, err := c.writeCriuConf(restoreOptions, options)
	if err != nil {
		return err
	}
	err = runtime.Restore(ctx, ociruntime.RestoreRequest{
		RunRequest: req, Images: from.Images, Work: c.dir, Config: config,
		LSMProfile: from.LSMProfile, LSMMountContext: from.LSMMountContext,
	})
	return errors.Join(err, remove(config), remove(filepath.Join(c.dir, ociruntime.RestoreLog)))
}

// readStdioFile reads and checks what Checkpoint wrote.
func readStdioFile(file string) (map[string]string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxStdioFile {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read: %w", stdioFile, info.Size(), maxStdioFile, errdefs.ErrInvalidArgument)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseStdioFile(text)
}

func parseStdioFile(text []byte) (map[string]string, error) {
	var keys map[string]string
	if err := json.Unmarshal(text, &keys); err != nil {
		return nil, fmt.Errorf("parse %s: %w: %w", stdioFile, err, errdefs.ErrInvalidArgument)
	}
	for key, name := range keys {
		if _, known := stdioFD[name]; !known || !stdioKey.MatchString(key) {
			return nil, fmt.Errorf("parse %s: %q for %q makes no sense: %w", stdioFile, key, name, errdefs.ErrInvalidArgument)
		}
	}
	return keys, nil
}
