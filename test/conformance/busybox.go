package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/berth-runtime/berth/test/command"
)

// busyboxConfig changes busybox's default configuration. What matters most is what stays off: FEATURE_SH_STANDALONE and
// FEATURE_PREFER_APPLETS, with which a shell runs applets inside itself, and masking /bin/ls would have no effect.
var busyboxConfig = []string{
	"CONFIG_STATIC=y",
	"# CONFIG_TC is not set", // does not compile with current kernel headers
	"# CONFIG_FEATURE_SH_STANDALONE is not set",
	"# CONFIG_FEATURE_PREFER_APPLETS is not set",
}

// busybox is a program which is many.
type busybox struct {
	program []byte
	applets []string
}

// compileBusybox compiles Debian's busybox.
func compileBusybox(ctx context.Context, d debian) (busybox, error) {
	recipe := d.suite + "\n" + strings.Join(busyboxConfig, "\n")
	dir, err := d.cache.Get("busybox", recipe, func(dir string) error {
		if err := d.source(ctx, dir, "busybox"); err != nil {
			return err
		}
		source := filepath.Join(dir, "source")
		if err := makeBusybox(ctx, source); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(source, "busybox"), filepath.Join(dir, "busybox")); err != nil {
			return err
		}
		return os.RemoveAll(source)
	})
	if err != nil {
		return busybox{}, err
	}
	path := filepath.Join(dir, "busybox")
	program, err := os.ReadFile(path)
	if err != nil {
		return busybox{}, fmt.Errorf("read busybox: %w", err)
	}
	list, err := command.Run(ctx, dir, path, "--list")
	if err != nil {
		return busybox{}, err
	}
	return busybox{program: program, applets: strings.Fields(list)}, nil
}

func makeBusybox(ctx context.Context, source string) error {
	// The time of the build is part of the program otherwise.
	in := command.Command{Dir: source, Env: []string{"KCONFIG_NOTIMESTAMP=1", "SOURCE_DATE_EPOCH=0"}}
	if _, err := in.Run(ctx, "make", "defconfig"); err != nil {
		return err
	}
	path := filepath.Join(source, ".config")
	config, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the default configuration: %w", err)
	}
	if err := os.WriteFile(path, []byte(configure(string(config), busyboxConfig)), 0o600); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	// It asks about every option that depends on a changed one; empty lines take the defaults.
	in.Stdin = strings.Repeat("\n", 100)
	if _, err := in.Run(ctx, "make", "oldconfig"); err != nil {
		return err
	}
	in.Stdin = ""
	_, err = in.Run(ctx, "make", "-j"+strconv.Itoa(runtime.NumCPU()), "busybox")
	return err
}

// configure replaces the lines about the options that the wanted lines name.
func configure(config string, wanted []string) string {
	lines := strings.Split(strings.TrimSpace(config), "\n")
	for i, line := range lines {
		for _, w := range wanted {
			if option(line) != "" && option(line) == option(w) {
				lines[i] = w
			}
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// option is the name that a line of a configuration sets.
func option(line string) string {
	if name, ok := strings.CutSuffix(strings.TrimPrefix(line, "# "), " is not set"); ok {
		return name
	}
	name, _, _ := strings.Cut(line, "=")
	return name
}
