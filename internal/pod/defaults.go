package pod

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-runtime/berth/internal/selinux"
	"github.com/berth-runtime/berth/internal/spec"
)

// passwdName is the name of /etc/passwd of a container in its bundle, where it gets one of its own.
const passwdName = "passwd"

// applyDefaults decides what a new pod gets that its request leaves open. The record keeps it: a restart with another
// configuration changes no pod.
func (e *Engine) applyDefaults(rec *sandboxRecord) {
	d := e.opts.Defaults
	rec.Defaults = map[string]string{}
	var added map[string]string
	if rec.Sysctls, added = d.Sysctls(rec.Config.M); len(added) > 0 {
		var texts []string
		for _, name := range slices.Sorted(maps.Keys(added)) {
			texts = append(texts, name+"="+added[name])
		}
		rec.Defaults["sysctls"] = strings.Join(texts, ", ")
	}
	if rec.hasIPC() {
		rec.ShmBytes = d.ShmBytes
		rec.Defaults["shm_size"] = strconv.FormatInt(d.ShmBytes, 10)
	}
	rec.Timezone = d.Timezone
}

// sysctls are those of the pod, with the defaults that it got.
func (r *sandboxRecord) sysctls() map[string]string {
	if r.Sysctls != nil {
		return r.Sysctls
	}
	return r.Config.M.GetLinux().GetSysctls()
}

func (e *Engine) passwdFile(id string) string { return filepath.Join(e.bundleDir(id), passwdName) }

// writePasswd writes /etc/passwd of the container into its bundle, as the image has it but for what was added.
func (c *container) writePasswd(file *spec.PasswdFile) error {
	if file == nil {
		return nil
	}
	path := c.engine.passwdFile(c.rec.ID)
	err := os.WriteFile(path, file.Content, 0o600)
	if err == nil {
		err = errors.Join(os.Chmod(path, file.Mode), os.Chown(path, int(file.UID), int(file.GID)), selinux.SetFile(path, c.rec.Labels.Mount))
	}
	if err != nil {
		return fmt.Errorf("write /etc/passwd of the container: %w", err)
	}
	return nil
}
