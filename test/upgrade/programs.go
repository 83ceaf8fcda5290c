// Package upgrade changes the version of Berth under running pods: from the last release to the working tree, and back.
package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/berth-runtime/berth/test/cache"
	"github.com/berth-runtime/berth/test/command"
)

// The last release. The commit is for checkouts without tags.
const (
	lastTag    = "v0.1.0"
	lastCommit = "bdac0b87bb5c5df678696dfec08592c7982e5735"
)

// gitDeadline bounds one question to git.
const gitDeadline = time.Minute

// errNoHistory is a checkout that the last release cannot be built from.
var errNoHistory = errors.New("the programs of the last release cannot be built here")

// lastRelease returns the directory of the programs of the last release. They are built from the history of the repository
// without the network, once per commit and version of Go. Where the history or a module is missing, the error is an
// errNoHistory.
func lastRelease(ctx context.Context, repository string) (string, error) {
	commit, err := resolve(ctx, repository)
	if err != nil {
		return "", err
	}
	c, err := cache.Open("upgrade")
	if err != nil {
		return "", err
	}
	return c.Get("programs", commit+" "+runtime.Version()+" "+runtime.GOARCH, func(dir string) error {
		return build(ctx, repository, commit, dir)
	})
}

// resolve finds the commit of the last release: by its tag, or else by its hash.
func resolve(ctx context.Context, repository string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, gitDeadline)
	defer cancel()
	var errs []error
	for _, name := range []string{"refs/tags/" + lastTag, lastCommit} {
		commit, err := git(ctx, repository, "rev-parse", "--verify", "--quiet", name+"^{commit}")
		if err == nil {
			return commit, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("%w: %s has neither the tag %s nor the commit %s: %w", errNoHistory, repository, lastTag, lastCommit, errors.Join(errs...))
}

// git asks about a repository that may belong to another user.
func git(ctx context.Context, repository string, args ...string) (string, error) {
	return command.Run(ctx, repository, append([]string{"git", "-c", "safe.directory=*"}, args...)...)
}

// build builds the programs of a commit into a directory.
func build(ctx context.Context, repository, commit, dir string) (err error) {
	tree, err := os.MkdirTemp("", "berth-upgrade-")
	if err != nil {
		return fmt.Errorf("make a directory for the sources: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tree)) }()
	archive := filepath.Join(tree, "sources.tar")
	if _, err := git(ctx, repository, "archive", "--output", archive, commit); err != nil {
		return fmt.Errorf("%w: %w", errNoHistory, err)
	}
	if _, err := command.Run(ctx, tree, "tar", "-xf", archive); err != nil {
		return err
	}
	offline := command.Command{Dir: tree, Env: []string{
		"CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOPROXY=off", "GOTOOLCHAIN=local", "GOWORK=off",
	}}
	_, err = offline.Run(ctx, "go", "build", "-trimpath", "-o", dir+"/", "./cmd/berthd", "./cmd/berth-shim", "./cmd/berth")
	if err != nil && strings.Contains(err.Error(), "GOPROXY=off") {
		return fmt.Errorf("%w: a module of %s is not in the module cache: %w", errNoHistory, lastTag, err)
	}
	return err
}
