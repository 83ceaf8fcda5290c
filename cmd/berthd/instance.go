package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/berth-runtime/berth/internal/config"
)

// instanceOf tells daemons on one host apart: nothing for the one with the
// default root, a short hash of the root for any other.
func instanceOf(root string) string {
	root = filepath.Clean(root)
	if root == config.DefaultRoot {
		return ""
	}
	sum := sha256.Sum256([]byte(root))
	return hex.EncodeToString(sum[:])[:instanceLength]
}

// shimProgram finds berth-shim: beside this program, else in PATH.
func shimProgram() (string, error) {
	const name = "berth-shim"
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	beside := filepath.Join(filepath.Dir(self), name)
	if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
		return beside, nil
	}
	found, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find %s beside %s or in PATH: %w", name, self, err)
	}
	return filepath.Abs(found)
}
