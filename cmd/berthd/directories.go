package main

import (
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/berth-runtime/berth/internal/directory"
)

// closeDir makes the root or the state directory, and takes from one that exists what other users may do with it: in both
// are root file systems of containers, with their setuid programs.
func (d *daemon) closeDir(dir string) error {
	mode := directory.Private
	if d.othersPass(dir) {
		mode = directory.Passage
	}
	closed, err := directory.Close(dir, mode)
	if err != nil {
		return fmt.Errorf("make directory %s: %w", dir, err)
	}
	if closed {
		d.log.Warn("directory closed to other users", "directory", dir, "mode", fmt.Sprintf("%#o", uint32(mode&fs.ModePerm)))
	}
	return nil
}

// othersPass tells whether other users have to get through a directory: root of a pod's user namespace to the bundles of
// its containers in the state directory, and the group of the socket to the socket.
func (d *daemon) othersPass(dir string) bool {
	if within(d.cfg.State, dir) {
		return true
	}
	u, err := url.Parse(d.cfg.Listen)
	return err == nil && u.Scheme == "unix" && within(u.Path, dir)
}

// within tells whether a path is dir or below it.
func within(path, dir string) bool {
	relative, err := filepath.Rel(dir, path)
	return err == nil && relative != ".." && !strings.HasPrefix(relative, "../")
}
