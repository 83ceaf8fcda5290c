package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/moby/sys/mountinfo"
)

// joinCgroup moves the supervisor out of the daemon's cgroup, so that a service
// manager which stops the daemon does not stop it. It can do its work without.
func (s *Supervisor) joinCgroup() {
	if s.cfg.Cgroup == "" {
		return
	}
	err := s.cfg.Cgroups.Create(s.cfg.Cgroup)
	if err == nil {
		err = s.cfg.Cgroups.AddProc(s.cfg.Cgroup, os.Getpid())
	}
	if err != nil {
		s.log.Warn("join own cgroup", "cgroup", s.cfg.Cgroup, "error", err)
	}
	s.joined = err == nil
}

// leaveCgroup moves the supervisor to the root of every hierarchy, where it stays
// for the last moment of its life, and removes its cgroup.
func (s *Supervisor) leaveCgroup() error {
	if s.cfg.Cgroup == "" {
		return nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return fmt.Errorf("leave own cgroup: %w", err)
	}
	var errs []error
	pid := []byte(strconv.Itoa(os.Getpid()))
	for _, m := range mounts {
		if !exists(filepath.Join(m.Mountpoint, s.cfg.Cgroup)) {
			continue
		}
		if err := os.WriteFile(filepath.Join(m.Mountpoint, "cgroup.procs"), pid, 0); err != nil {
			errs = append(errs, fmt.Errorf("leave own cgroup: %w", err))
		}
	}
	return errors.Join(append(errs, s.cfg.Cgroups.Remove(s.cfg.Cgroup))...)
}
