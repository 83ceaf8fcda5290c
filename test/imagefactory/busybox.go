package imagefactory

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// BusyboxPath is the program that Debian's busybox-static installs.
const BusyboxPath = "/bin/busybox"

const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
user:x:1000:1000:user:/home/user:/bin/sh
`
	group = `root:x:0:
daemon:x:1:
www-data:x:33:
audio:x:29:user
nogroup:x:65534:
user:x:1000:
extra:x:50000:user
`
)

// BusyboxFiles returns the files of the busybox image: every applet a hard
// link in /bin, accounts, /tmp and the usual directories.
func BusyboxFiles() ([]File, error) {
	found, err := readBusybox()
	if err != nil {
		return nil, err
	}
	return BusyboxTree(found.program, found.applets, passwd, group), nil
}

// BusyboxTree is the same for another busybox and other accounts.
func BusyboxTree(program []byte, applets []string, passwd, group string) []File {
	files := []File{
		Dir("bin"), Dir("dev"), Dir("etc"), Dir("home"), Dir("proc"), Dir("sys"), Dir("usr"), Dir("var"), Dir("var/www"),
		{Path: "root", Kind: tar.TypeDir, Mode: 0o700},
		{Path: "home/user", Kind: tar.TypeDir, Mode: 0o755, UID: 1000, GID: 1000},
		{Path: "tmp", Kind: tar.TypeDir, Mode: 0o777 | fs.ModeSticky},
		Symlink("usr/bin", "../bin"), Symlink("sbin", "bin"),
		Regular("etc/passwd", passwd), Regular("etc/group", group),
		Program("bin/busybox", program),
	}
	for _, applet := range applets {
		if applet != "busybox" {
			files = append(files, Hardlink("bin/"+applet, "bin/busybox"))
		}
	}
	return files
}

// Busybox builds a small image with a shell from Debian's busybox-static. It
// runs sh by default, as root.
func Busybox() (*Artifact, error) { return BusyboxWith(Spec{}) }

// BusyboxWith builds the busybox image with the configuration, platform and
// annotations of a description, whose layers come on top.
func BusyboxWith(spec Spec) (*Artifact, error) {
	files, err := BusyboxFiles()
	if err != nil {
		return nil, err
	}
	spec.Layers = slices.Insert(slices.Clone(spec.Layers), 0, Layer{Files: files})
	if len(spec.Config.Env) == 0 {
		spec.Config.Env = []string{"PATH=/bin"}
	}
	if len(spec.Config.Cmd) == 0 && len(spec.Config.Entrypoint) == 0 {
		spec.Config.Cmd = []string{"sh"}
	}
	return Build(spec)
}

type busybox struct {
	program []byte
	applets []string
}

// readBusybox reads the program and asks it for its applets, once.
var readBusybox = sync.OnceValues(func() (busybox, error) {
	program, err := os.ReadFile(BusyboxPath)
	if err != nil {
		return busybox{}, fmt.Errorf("read busybox (Debian package busybox-static): %w", err)
	}
	if !bytes.HasPrefix(program, []byte("\x7fELF")) {
		return busybox{}, fmt.Errorf("read busybox: %s is not an ELF program", BusyboxPath)
	}
	list, err := exec.Command(BusyboxPath, "--list").Output()
	if err != nil {
		return busybox{}, fmt.Errorf("list busybox applets: %w", err)
	}
	return busybox{program: program, applets: strings.Fields(string(list))}, nil
})

// MinimalConfig is the configuration of an image that runs one command.
func MinimalConfig(command ...string) ocispec.ImageConfig {
	return ocispec.ImageConfig{Cmd: command, Env: []string{"PATH=/bin"}}
}
