package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

const (
	// buildDeadline bounds the build of the Kubernetes programs, downloads included.
	buildDeadline = 90 * time.Minute
	// kubernetesModule is the module that names the versions of the Kubernetes programs.
	kubernetesModule = "kubernetes"
)

// build builds the Kubernetes programs from their Go modules into the user's cache directory, and
// returns the directory of the programs. A second call finds everything in Go's build cache.
func build(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, buildDeadline)
	defer cancel()
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", fmt.Errorf("find the source of this program: %q; run it with go run, without -trimpath", file)
	}
	module := filepath.Join(filepath.Dir(file), kubernetesModule)
	version, err := kubernetesVersion(module)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache directory: %w", err)
	}
	dir := filepath.Join(cache, "berth", "kubernetes-"+strings.TrimPrefix(version, "v"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	fmt.Printf("Building Kubernetes %s and etcd (the first time about 15 minutes on two cores)\n", version)
	minor := strings.Split(version, ".")[1]
	stamp := "k8s.io/component-base/version."
	cmd := exec.CommandContext(ctx, "go", "build", "-C", module, "-trimpath",
		"-ldflags", "-s -w -X "+stamp+"gitVersion="+version+" -X "+stamp+"gitMajor=1 -X "+stamp+"gitMinor="+minor,
		"-o", dir+"/", "tool")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("build Kubernetes %s: %w", version, err)
	}
	// The main package of etcd is the root of its module "server", which names the program.
	if err := os.Symlink("server", filepath.Join(dir, "etcd")); err != nil && !os.IsExist(err) {
		return "", err
	}
	return dir, nil
}

// kubernetesVersion reads the version of k8s.io/kubernetes from go.mod.
func kubernetesVersion(module string) (string, error) {
	file := filepath.Join(module, "go.mod")
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) >= 2 && words[0] == "k8s.io/kubernetes" && words[1] != "=>" {
			return words[1], nil
		}
	}
	return "", fmt.Errorf("%s names no version of k8s.io/kubernetes", file)
}
