package leakcheck

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/isolation"
	"github.com/berth-runtime/berth/test/privilege"
)

// subjectRole makes the test binary a subject: a process that is isolated like a test binary and runs one leak check. Its
// value names what the subject leaks.
const subjectRole = "BERTH_LEAKCHECK_SUBJECT"

// started is what a subject writes when its leak check has started.
const started = "started"

func TestMain(m *testing.M) {
	if leak := os.Getenv(subjectRole); leak != "" {
		os.Exit(playSubject(leak))
	}
	os.Exit(isolation.Main(m))
}

// playSubject begins a leak check, waits for a line of input, leaks something and writes the report.
func playSubject(leak string) int {
	if err := isolation.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	subject := &recorder{name: "TestSubject/Leak"}
	Check(subject)
	fmt.Println(started)
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err == nil {
		err = makeThings(leak)
	}
	fmt.Println(subject.finish())
	if leak == "tmp" { // or else it fails the package
		err = errors.Join(err, os.Remove("/tmp/unmarked"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return isolation.Leave(1)
	}
	return isolation.Leave(0)
}

// things are what makeThings makes, without a mark of the test in their names.
var things = []string{"tmp", "run", "state", "mount", "link", "nftables"}

// makeThings makes the things that what names: nothing, one of them, or all.
func makeThings(what string) error {
	var errs []error
	for _, thing := range things {
		if what == "all" || what == thing {
			errs = append(errs, makeThing(thing))
		}
	}
	return errors.Join(errs...)
}

func makeThing(thing string) error {
	switch thing {
	case "tmp":
		return os.WriteFile("/tmp/unmarked", nil, 0o600)
	case "run":
		return os.WriteFile("/run/unmarked", nil, 0o600)
	case "state":
		return os.Mkdir("/var/lib/unmarked", 0o700)
	case "mount":
		return mountIn(os.Getenv(sharedMount))
	case "link":
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "unmarked"}})
	case "nftables":
		return exec.Command("nft", "add", "table", "inet", "unmarked").Run()
	}
	return fmt.Errorf("unknown thing %q", thing)
}

// sharedMount names a directory for mounts. What is mounted there is propagated to all copies of the mount table that
// have not made themselves private.
const sharedMount = "BERTH_LEAKCHECK_SHARED_MOUNT"

func mountIn(dir string) error {
	target := filepath.Join(dir, fmt.Sprintf("unmarked%d", os.Getpid()))
	if err := os.Mkdir(target, 0o700); err != nil {
		return err
	}
	return unix.Mount("unmarked", target, "tmpfs", 0, "size=4k")
}

// runSubject starts a subject, calls meanwhile while its leak check runs, and returns its report.
func runSubject(t *testing.T, leak, shared string, meanwhile func()) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(isolation.Outside(), subjectRole+"="+leak, sharedMount+"="+shared)
	cmd.Stderr = t.Output()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(stdout)
	if line, err := out.ReadString('\n'); err != nil || strings.TrimSpace(line) != started {
		t.Fatalf("subject says %q (%v), want %q", line, err, started)
	}
	meanwhile()
	if _, err := io.WriteString(stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	report, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("subject: %v", err)
	}
	return strings.TrimSpace(string(report))
}

// shareMounts mounts a file system whose mounts are propagated, where all subjects see it, for the length of the test.
func shareMounts(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "berth-leakcheck-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("shared", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestOtherProgramsDoNotCount: what another program makes on the machine during a leak check is not a leak. The machine is
// this process here: the subject has isolated itself from it.
func TestOtherProgramsDoNotCount(t *testing.T) {
	privilege.Root(t)
	shared := shareMounts(t)
	report := runSubject(t, "nothing", shared, func() {
		if err := makeThings("all"); err != nil {
			t.Error(err)
		}
	})
	if report != "" {
		t.Errorf("leak check reports %q, want nothing", report)
	}
	for _, path := range []string{"/tmp/unmarked", "/run/unmarked", "/var/lib/unmarked"} {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
	if err := netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "unmarked"}}); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("nft", "delete", "table", "inet", "unmarked").CombinedOutput(); err != nil {
		t.Errorf("delete the table: %v: %s", err, out)
	}
}

// TestOwnLeaksCount: the same things are leaks if the test makes them, without a mark of the test in their names.
func TestOwnLeaksCount(t *testing.T) {
	privilege.Root(t)
	for thing, want := range map[string]string{
		"tmp": "new in places for temporary files: /tmp/unmarked", "run": "new in places for temporary files: /run/unmarked",
		"state": "new in places for temporary files: /var/lib/unmarked", "mount": "new in mounts: tmpfs on ",
		"link": "new in links: unmarked (bridge)", "nftables": "new in nftables: table inet unmarked",
	} {
		t.Run(thing, func(t *testing.T) {
			if report := runSubject(t, thing, shareMounts(t), func() {}); !strings.Contains(report, want) {
				t.Errorf("leak check reports %q, want it to contain %q", report, want)
			}
		})
	}
}
