// Package selinux gives pods and containers their SELinux labels: the label of
// processes, and that of the files which only they may use. Pods differ in their
// level, so that one cannot use another's files; the containers of a pod share it.
package selinux

import (
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	selinuxlib "github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
)

// unconfined is the type of processes that SELinux does not restrict.
const unconfined = "spc_t"

// defaultLevel is that of what is not confined to one pod.
const defaultLevel = "s0"

// Labels are those of the processes of a pod or container, and of its files.
// Both are empty on a host without SELinux.
type Labels struct {
	Process string `json:"process,omitempty"`
	Mount   string `json:"mount,omitempty"`
}

// Options are parts of a label that a request names; what is empty is chosen.
type Options struct{ User, Role, Type, Level string }

func (o Options) list() []string {
	var list []string
	for _, part := range [][2]string{{"user", o.User}, {"role", o.Role}, {"type", o.Type}, {"level", o.Level}} {
		if part[1] != "" {
			list = append(list, part[0]+":"+part[1])
		}
	}
	return list
}

// Enabled tells whether the kernel checks labels, and its policy knows those of
// containers. With a policy that does not, as that of Debian 12, containers run
// with the labels that their files happen to have.
var Enabled = sync.OnceValue(func() bool {
	if !selinuxlib.GetEnabled() {
		return false
	}
	process, mount, err := label.InitLabels(nil)
	if err != nil || process == "" {
		return false
	}
	l := Labels{Process: process, Mount: mount}
	defer Release(l)
	return l.check() == nil
})

// Unlabelled tells whether the kernel checks labels, but containers have none.
func Unlabelled() bool { return selinuxlib.GetEnabled() && !Enabled() }

// ForPod chooses the labels of a pod: with a level that no other pod has, unless
// the request names one. It is reserved until Release.
func ForPod(o Options) (Labels, error) {
	if !Enabled() {
		return Labels{}, nil
	}
	process, mount, err := label.InitLabels(o.list())
	if err != nil {
		return Labels{}, fmt.Errorf("choose SELinux labels: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	l := Labels{Process: process, Mount: mount}
	if err := l.check(); err != nil {
		Release(l)
		return Labels{}, err
	}
	return l, nil
}

// ForContainer returns the labels of a container of a pod: the pod's, but for
// what the request names. A privileged container is not restricted, whatever is
// named, but what is named must make sense.
func (l Labels) ForContainer(o Options, privileged bool) (Labels, error) {
	if l.Process == "" {
		return l, nil
	}
	process, err := with(l.Process, o)
	if err != nil {
		return Labels{}, err
	}
	mount, err := with(l.Mount, Options{User: o.User, Level: o.Level})
	if err != nil {
		return Labels{}, err
	}
	own := Labels{Process: process, Mount: mount}
	if err := own.check(); err != nil {
		return Labels{}, err
	}
	if privileged {
		if own.Process, err = with(l.Process, Options{Type: unconfined, Level: defaultLevel}); err != nil {
			return Labels{}, err
		}
		if err := own.check(); err != nil {
			return Labels{}, err
		}
	}
	return own, nil
}

// with replaces parts of a label.
func with(text string, o Options) (string, error) {
	context, err := selinuxlib.NewContext(text)
	if err != nil {
		return "", fmt.Errorf("SELinux label %q: %w", text, err)
	}
	for name, value := range map[string]string{"user": o.User, "role": o.Role, "type": o.Type, "level": o.Level} {
		if value != "" {
			context[name] = value
		}
	}
	return context.Get(), nil
}

// check asks the kernel whether its policy knows the labels.
func (l Labels) check() error {
	for _, text := range []string{l.Process, l.Mount} {
		if text == "" {
			continue
		}
		if err := selinuxlib.SecurityCheckContext(text); err != nil {
			return fmt.Errorf("SELinux label %q: the policy of this host does not know it: %w: %w", text, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// Level is what tells pods apart.
func (l Labels) Level() string {
	context, err := selinuxlib.NewContext(l.Process)
	if err != nil {
		return ""
	}
	return context["level"]
}

// Reserve keeps a level from being chosen for another pod, as after a restart.
func Reserve(l Labels) error {
	if l.Process == "" {
		return nil
	}
	err := selinuxlib.ReserveLabelV2(l.Process)
	if errors.Is(err, selinuxlib.ErrMCSAlreadyExists) {
		return nil
	}
	return err
}

// Release lets another pod have the level.
func Release(l Labels) { selinuxlib.ReleaseLabel(l.Process) }

// SetFile gives a file the label; an empty one changes nothing.
func SetFile(path, text string) error {
	if text == "" {
		return nil
	}
	if err := label.SetFileLabel(path, text); err != nil {
		return fmt.Errorf("label %s: %w", path, err)
	}
	return nil
}

// Relabel gives all that is in a directory the label; an empty one changes
// nothing. Directories of the host that many depend on are refused.
func Relabel(path, text string) error {
	if text == "" {
		return nil
	}
	if err := label.Relabel(path, text, false); err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	return nil
}
