// Package programs builds the programs under test.
package programs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Variable is the environment variable that names the directory of the programs. They are built if it is not set.
const Variable = "BERTH_BIN"

// buildDeadline bounds the build of the programs.
const buildDeadline = 15 * time.Minute

// Dir returns the directory of berthd, berth-shim and berth. They are built once per process, with the race detector if
// the test binary has it.
func Dir() (string, error) {
	if dir := os.Getenv(Variable); dir != "" {
		return dir, nil
	}
	return build()
}

// Prepare is Dir for a TestMain that isolates its test binary afterwards: the go command may need the network. The
// isolated process finds the programs by Variable.
func Prepare() (string, error) {
	dir, err := Dir()
	if err != nil {
		return "", err
	}
	if err := os.Setenv(Variable, dir); err != nil {
		return "", fmt.Errorf("set the directory of the programs: %w", err)
	}
	return dir, nil
}

var build = sync.OnceValues(func() (_ string, err error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	caches, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache directory: %w", err)
	}
	// All test binaries of a repository share a directory: the go command replaces a program only when it has changed.
	name, args := fmt.Sprintf("programs-%.6x", sha256.Sum256([]byte(root))), []string{"build"}
	if raceDetector() {
		name, args = name+"-race", append(args, "-race")
	}
	dir := filepath.Join(caches, "berth", name)
	unlock, err := lock(dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	ctx, cancel := context.WithTimeout(context.Background(), buildDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append(args, "-o", dir+"/", "./cmd/berthd", "./cmd/berth-shim", "./cmd/berth")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the programs under test: %w: %s", err, out)
	}
	return dir, nil
})

// repository returns the directory of the module that the working directory is in.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for start := dir; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find the repository: no go.mod in %s or above it", start)
		}
	}
}

func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return false
	}
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}

// lock makes a directory, and keeps the test binaries of other packages from building into it.
func lock(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the programs: %w", err)
	}
	f, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the programs: %w", err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f.Close, nil
}
