package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/berth-runtime/berth/test/cache"
	"github.com/berth-runtime/berth/test/command"
	"github.com/berth-runtime/berth/test/imagefactory"
)

const (
	debianMirror  = "http://deb.debian.org/debian"
	debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

var debianSuite = regexp.MustCompile(`(?m)^VERSION_CODENAME=([a-z]+)$`)

// debian fetches packages and sources of the release that runs here, checked by apt as ever. It has package lists of
// its own, so that the machine's sources stay as they are.
type debian struct {
	cache cache.Cache
	suite string
}

func openDebian(c cache.Cache) (debian, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return debian{}, fmt.Errorf("find out which Debian this is: %w", err)
	}
	m := debianSuite.FindSubmatch(release)
	if m == nil {
		return debian{}, fmt.Errorf("find out which Debian this is: /etc/os-release has no VERSION_CODENAME")
	}
	return debian{cache: c, suite: string(m[1])}, nil
}

// files returns what packages install.
func (d debian) files(ctx context.Context, packages ...string) ([]imagefactory.File, error) {
	dir, err := d.cache.Get("packages-"+packages[0], d.suite+" "+strings.Join(packages, " "), func(dir string) error {
		return d.apt(ctx, dir, append([]string{"download"}, packages...)...)
	})
	if err != nil {
		return nil, err
	}
	archives, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return nil, err
	}
	if len(archives) != len(packages) {
		return nil, fmt.Errorf("%s holds %d packages of %d", dir, len(archives), len(packages))
	}
	var files []imagefactory.File
	for _, archive := range slices.Sorted(slices.Values(archives)) {
		more, err := imagefactory.PackageFiles(ctx, archive)
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	return files, nil
}

// source unpacks the patched source of a package into dir/source.
func (d debian) source(ctx context.Context, dir, name string) error {
	if err := d.apt(ctx, dir, "source", "--download-only", name); err != nil {
		return err
	}
	descriptions, err := filepath.Glob(filepath.Join(dir, "*.dsc"))
	if err != nil {
		return err
	}
	if len(descriptions) != 1 {
		return fmt.Errorf("download the source of %s: %d descriptions instead of one", name, len(descriptions))
	}
	_, err = command.Run(ctx, dir, "dpkg-source", "-x", descriptions[0], "source")
	return err
}

// apt runs apt-get in dir after it has fetched the package lists.
func (d debian) apt(ctx context.Context, dir string, args ...string) (err error) {
	state, err := os.MkdirTemp("", "berth-apt-")
	if err != nil {
		return fmt.Errorf("make a directory for package lists: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()
	for _, sub := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(state, sub), 0o755); err != nil {
			return fmt.Errorf("make a directory for package lists: %w", err)
		}
	}
	var sources strings.Builder
	for _, kind := range []string{"deb", "deb-src"} {
		fmt.Fprintf(&sources, "%s [signed-by=%s] %s %s main\n", kind, debianKeyring, debianMirror, d.suite)
	}
	file := filepath.Join(state, "sources.list")
	if err := os.WriteFile(file, []byte(sources.String()), 0o600); err != nil {
		return fmt.Errorf("write the sources of packages: %w", err)
	}
	// What is installed here must not matter.
	status := filepath.Join(state, "status")
	if err := os.WriteFile(status, nil, 0o600); err != nil {
		return fmt.Errorf("write the list of installed packages: %w", err)
	}
	apt := []string{
		"apt-get", "-q", "-o", "Dir::Etc::SourceList=" + file, "-o", "Dir::Etc::SourceParts=/dev/null",
		"-o", "Dir::State::Lists=" + filepath.Join(state, "lists"), "-o", "Dir::Cache=" + filepath.Join(state, "cache"), "-o", "Dir::State::Status=" + status,
		"-o", "APT::Sandbox::User=root",
	}
	if _, err := command.Run(ctx, state, append(slices.Clone(apt), "update")...); err != nil {
		return err
	}
	_, err = command.Run(ctx, dir, append(slices.Clone(apt), args...)...)
	return err
}
