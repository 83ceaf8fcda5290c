package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// emulator is QEMU for the only platform that Debian's cloud kernel and we have in common so far.
const emulator = "qemu-system-x86_64"

// machine is a virtual machine that runs a plan once.
type machine struct {
	root root
	// payload is the image of the second disk.
	payload string
	// kernel has further words for the kernel's command line.
	kernel []string
	// dir receives the console's log; its path must be short, for it holds a socket.
	dir string
}

func (m machine) console() string { return filepath.Join(m.dir, "console.log") }

// run starts the machine and calls heard for each event, until it powers off.
func (m machine) run(ctx context.Context, heard func(Event)) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	socket := filepath.Join(m.dir, "events.sock")
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("listen for the machine's events: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // so that Accept returns
	defer stop()
	said, err := os.Create(filepath.Join(m.dir, "qemu.log"))
	if err != nil {
		return fmt.Errorf("make the emulator's log: %w", err)
	}
	defer func() { err = errors.Join(err, said.Close()) }()
	cmd := exec.CommandContext(ctx, emulator, m.args(socket)...)
	cmd.Stdout, cmd.Stderr = said, said
	// A test that is ended by its time-out has no time to end the machine.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // whose end is the death that the signal is about
		ended <- cmd.Run()
		cancel()
	}()
	listening := listen(l, heard)
	if listening != nil {
		cancel()
	}
	if err := <-ended; err != nil {
		return fmt.Errorf("run the machine: %w", errors.Join(err, listening))
	}
	return listening
}

// args is the command line of QEMU. Nothing in the machine can reach the host, nor the host it, but for disks, console
// and events.
func (m machine) args(socket string) []string {
	words := append([]string{"root=/dev/vda", "rw", "console=ttyS0", "quiet", "panic=-1", "systemd.unified_cgroup_hierarchy=1", "systemd.show_status=0"}, m.kernel...)
	disk := func(file string) string {
		return "file=" + file + ",format=raw,if=virtio,snapshot=on,cache=unsafe"
	}
	return []string{
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072",
		"-nodefaults", "-no-reboot", "-display", "none", "-serial", "file:" + m.console(),
		"-kernel", m.root.kernel, "-initrd", m.root.initrd, "-append", strings.Join(words, " "),
		"-drive", disk(m.root.disk), "-drive", disk(m.payload),
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=events,path=" + socket, "-device", "virtserialport,chardev=events,name=" + portName,
	}
}

// listen reads events until the machine is off.
func listen(l net.Listener, heard func(Event)) (err error) {
	conn, err := l.Accept()
	if errors.Is(err, net.ErrClosed) {
		return nil // the emulator has ended already, and says why
	}
	if err != nil {
		return fmt.Errorf("listen for the machine's events: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	events := json.NewDecoder(conn)
	for {
		var e Event
		if err := events.Decode(&e); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("understand the machine's events: %w", err)
		}
		heard(e)
	}
}
