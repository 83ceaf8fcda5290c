package pod

import (
	"fmt"
	"os"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/selinux"
)

func selinuxOptions(o *runtimeapi.SELinuxOption) selinux.Options {
	return selinux.Options{User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: o.GetLevel()}
}

// podLabels chooses the SELinux labels of a pod. What it reserves is released
// with the pod, see releaseLabels.
func (e *Engine) podLabels(cfg *runtimeapi.PodSandboxConfig) (selinux.Labels, error) {
	if !e.opts.Host.SELinux {
		return selinux.Labels{}, nil
	}
	labels, err := selinux.ForPod(selinuxOptions(cfg.GetLinux().GetSecurityContext().GetSelinuxOptions()))
	if err != nil {
		return labels, fmt.Errorf("linux.security_context.selinux_options: %w", err)
	}
	return labels, nil
}

// containerLabels returns the SELinux labels of a container.
func (s *sandbox) containerLabels(cfg *runtimeapi.ContainerConfig) (selinux.Labels, error) {
	sc := cfg.GetLinux().GetSecurityContext()
	labels, err := s.rec.Labels.ForContainer(selinuxOptions(sc.GetSelinuxOptions()), sc.GetPrivileged())
	if err == nil && !sc.GetPrivileged() {
		err = selinux.Reserve(labels)
	}
	if err != nil {
		return labels, fmt.Errorf("linux.security_context.selinux_options: %w", err)
	}
	return labels, nil
}

// releaseLabels lets other pods have a level that no object has any more. The
// engine's lock is held.
func (e *Engine) releaseLabels(labels selinux.Labels) {
	if labels.Process == "" {
		return
	}
	for _, s := range e.sandboxes.byID {
		if s.rec.Labels.Level() == labels.Level() {
			return
		}
	}
	for _, c := range e.containers.byID {
		if c.rec.Labels.Level() == labels.Level() {
			return
		}
	}
	selinux.Release(labels)
}

// labelFiles gives the files which the containers of a pod share its label.
func labelFiles(dir, label string) error {
	if label == "" {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := selinux.SetFile(filepath.Join(dir, entry.Name()), label); err != nil {
			return err
		}
	}
	return selinux.SetFile(dir, label)
}

// relabelMounts gives what is mounted the container's label, where the request
// wants that and nowhere else. Images are not: their files belong to every pod.
func (c *container) relabelMounts(cfg *runtimeapi.ContainerConfig) error {
	label := c.rec.Labels.Mount
	if label == "" {
		return nil
	}
	for i, m := range cfg.GetMounts() {
		if !m.GetSelinuxRelabel() || m.GetImage() != nil {
			continue
		}
		source, err := filepath.EvalSymlinks(m.GetHostPath())
		if err == nil {
			err = selinux.Relabel(source, label)
		}
		if err != nil {
			return fmt.Errorf("mounts[%d].selinux_relabel: %w", i, err)
		}
	}
	return nil
}
