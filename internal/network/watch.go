package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long changes of the configuration directory are gathered: an installer writes several files, and a file
// in several steps.
const settle = 50 * time.Millisecond

// watch makes the manager see changes of the configuration directory, which may come and go.
func (m *Manager) watch() error {
	if m.options.ConfDir == "" || m.options.Builtin == BuiltinAlways {
		m.watched = true // there is nothing to see
		return nil
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch CNI configuration: %w", err)
	}
	if err := arm(watcher, m.options.ConfDir); err != nil {
		return errors.Join(err, watcher.Close())
	}
	m.cni.load() // what changed before the watch was armed
	m.watched = true
	m.run(func(ctx context.Context) {
		m.follow(ctx, watcher)
		if err := watcher.Close(); err != nil {
			m.log.Warn("end watch of CNI configuration", "error", err)
		}
	})
	return nil
}

// follow reloads the configuration after each change, until ctx is done or the watch breaks.
func (m *Manager) follow(ctx context.Context, watcher *fsnotify.Watcher) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-watcher.Events:
			if concerns(m.options.ConfDir, event.Name) {
				timer.Reset(settle)
			}
		case err := <-watcher.Errors:
			// Events were lost: look.
			m.log.Warn("watch of CNI configuration", "error", err)
			timer.Reset(settle)
		case <-timer.C:
			if err := arm(watcher, m.options.ConfDir); err != nil {
				m.log.Warn("changes of the CNI configuration are looked up when needed", "dir", m.options.ConfDir, "error", err)
				m.mu.Lock()
				m.watched = false
				m.mu.Unlock()
				return
			}
			m.cni.load()
			m.cni.refresh(m.run)
		}
	}
}

// arm watches the directory, the directories in it, and its nearest ancestor that exists: there a removed directory comes
// back. Watches are on inodes, so one that was removed or moved and created again needs a new watch.
func arm(watcher *fsnotify.Watcher, dir string) error {
	for _, old := range watcher.WatchList() {
		if err := watcher.Remove(old); err != nil && !errors.Is(err, fsnotify.ErrNonExistentWatch) {
			return fmt.Errorf("watch CNI configuration: %w", err)
		}
	}
	targets := []string{dir}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("watch CNI configuration: %w", err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			targets = append(targets, filepath.Join(dir, entry.Name()))
		}
	}
	for _, target := range targets {
		if err := watcher.Add(target); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("watch CNI configuration: %w", err)
		}
	}
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		err := watcher.Add(parent)
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrNotExist) || parent == filepath.Dir(parent) {
			return fmt.Errorf("watch CNI configuration: %w", err)
		}
	}
}

// concerns reports whether a change at path can change what is in dir: it is in it, or on the way to it.
func concerns(dir, path string) bool {
	inside, err := filepath.Rel(dir, path)
	if err == nil && filepath.IsLocal(inside) {
		return true
	}
	outside, err := filepath.Rel(path, dir)
	return err == nil && filepath.IsLocal(outside)
}
