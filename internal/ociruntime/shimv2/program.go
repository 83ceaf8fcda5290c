// Package shimv2 speaks containerd's runtime v2 protocol from the side of the daemon: it starts the program of a shim
// (containerd-shim-runc-v2, Kata's, gVisor's), which leaves a process behind that serves the task service over ttrpc,
// and calls that service.
//
//	Berth                                         shim
//	  | PROGRAM -id POD … start      --------->    |  prints the address of a process that it leaves behind
//	  | Create, Start, Wait, Exec, … -- ttrpc -->  |  for every container of the pod
//	  | <- events (dropped: Wait says what counts) |
//	  | Delete, Shutdown             -- ttrpc -->  |  the process ends after the last container
//	  | PROGRAM -id ID … delete      --------->    |  cleans up when the process died
package shimv2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/shimv2/task"
	"github.com/berth-runtime/berth/internal/text"
)

const (
	// Namespace is the containerd namespace that shims get.
	Namespace = "berth"
	// LogFIFO is the file in a bundle to which a shim writes its log. It must be there, with a reader, before Start.
	LogFIFO = "log"
	// maxOutput bounds what is read of what an action of a shim printed.
	maxOutput = 64 << 10
	// maxMessage bounds the part of it that goes into an error.
	maxMessage = 2 << 10
)

// Keys of Handler.Options.
const (
	// OptionBinaryName is the OCI runtime that io.containerd.runc.v2 uses.
	OptionBinaryName = "binary_name"
	// OptionShimCgroup is where the processes of a shim go.
	OptionShimCgroup = "shim_cgroup"
	// OptionConfigPath is the configuration file of shims that have one, OptionTypeURL what containerd calls its kind.
	OptionConfigPath = "config_path"
	OptionTypeURL    = "type_url"
)

// Program is the program of a shim.
type Program struct {
	handler ociruntime.Handler
	path    string
	runner  ociruntime.Runner
	events  string
	publish string
}

// New finds the handler's program. Events is the socket that the shim sends events to; publish the program that older
// ones execute for it.
func New(h ociruntime.Handler, runner ociruntime.Runner, events, publish string) (*Program, error) {
	if h.Type != ociruntime.TypeShimV2 {
		return nil, fmt.Errorf("runtime handler %q: type %q is not %q: %w", h.Name, h.Type, ociruntime.TypeShimV2, errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(h.Root) {
		return nil, fmt.Errorf("runtime handler %q: root %q is not an absolute path: %w", h.Name, h.Root, errdefs.ErrInvalidArgument)
	}
	path, err := exec.LookPath(ProgramName(h.Path))
	if err != nil {
		return nil, fmt.Errorf("runtime handler %q: find program: %w: %w", h.Name, err, errdefs.ErrFailedPrecondition)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("runtime handler %q: find program: %w", h.Name, err)
	}
	return &Program{handler: h, path: path, runner: runner, events: events, publish: publish}, nil
}

// ProgramName turns containerd's name of a runtime, such as io.containerd.runc.v2, into that of its program,
// containerd-shim-runc-v2. Anything else is a program already.
func ProgramName(name string) string {
	parts := strings.Split(name, ".")
	if strings.ContainsRune(name, '/') || len(parts) < 3 {
		return name
	}
	version, err := strconv.Atoi(strings.TrimPrefix(parts[len(parts)-1], "v"))
	if err != nil || version < 1 {
		return name
	}
	return "containerd-shim-" + parts[len(parts)-2] + "-" + parts[len(parts)-1]
}

// drivesRunc tells whether the program is containerd's own shim for runc and its kin.
func (p *Program) drivesRunc() bool {
	return strings.HasPrefix(filepath.Base(p.path), "containerd-shim-runc-")
}

// sandboxes tells whether the program is known to run the containers of a pod in one sandbox: gVisor's, Kata's.
func (p *Program) sandboxes() bool {
	name := filepath.Base(p.path)
	return strings.HasPrefix(name, "containerd-shim-runsc-") || strings.HasPrefix(name, "containerd-shim-kata-")
}

// Options are what Create tells the shim about the handler; nil for a shim without options.
func (p *Program) Options() (*anypb.Any, error) {
	options := p.handler.Options
	name, message := "containerd.runc.v1.Options", proto.Message(&task.RuncOptions{
		BinaryName: options[OptionBinaryName], ShimCgroup: options[OptionShimCgroup],
		Root: p.handler.Root, SystemdCgroup: p.handler.SystemdCgroup,
	})
	if !p.drivesRunc() {
		if options[OptionConfigPath] == "" {
			return nil, nil
		}
		name = "runtimeoptions.v1.Options"
		message = &task.FileOptions{TypeUrl: options[OptionTypeURL], ConfigPath: options[OptionConfigPath]}
	}
	value, err := proto.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("encode options of runtime handler %q: %w", p.handler.Name, err)
	}
	return &anypb.Any{TypeUrl: name, Value: value}, nil
}

// specAny wraps a part of the runtime specification, as JSON, the way shims want it.
func specAny(kind string, value []byte) *anypb.Any {
	return &anypb.Any{TypeUrl: fmt.Sprintf("types.containerd.io/opencontainers/runtime-spec/%d/%s", specs.VersionMajor, kind), Value: value}
}

// Endpoint is where a shim serves.
type Endpoint struct {
	// Version of the task service, 2 or 3.
	Version int `json:"version"`
	// Address is that of a unix socket.
	Address string `json:"address"`
	// Protocol is ttrpc.
	Protocol string `json:"protocol"`
}

// Socket is the path of the socket.
func (e Endpoint) Socket() string { return strings.TrimPrefix(e.Address, "unix://") }

// check refuses what is not spoken here.
func (e Endpoint) check() error {
	if e.Version < 2 || e.Version > 3 || e.Protocol != "ttrpc" || !filepath.IsAbs(e.Socket()) {
		return fmt.Errorf("shim serves version %d of the task service with %q at %q, want version 2 or 3 with ttrpc at a unix socket: %w",
			e.Version, e.Protocol, e.Address, errdefs.ErrNotImplemented)
	}
	return nil
}

// Start has the program leave a process behind for the pod of a bundle, and says where it serves. Where such a process
// is there already, that is the one. Scratch is a directory for what the program prints, and for the OCI runtime of the
// process: it must be there as long as that is, and RemoveScratch removes it.
func (p *Program) Start(ctx context.Context, scratch, bundle, id string) (Endpoint, error) {
	out, err := p.act(ctx, scratch, bundle, id, "start")
	if err != nil {
		return Endpoint{}, err
	}
	e, err := parseEndpoint(out)
	if err != nil {
		return Endpoint{}, fmt.Errorf("%s start: %w", p.handler.Name, err)
	}
	return e, nil
}

// parseEndpoint reads what start printed: a plain address, JSON, or a message.
func parseEndpoint(out []byte) (Endpoint, error) {
	text := strings.TrimSpace(string(out))
	e := Endpoint{Version: 2, Protocol: "ttrpc"}
	var message task.BootstrapResult
	switch {
	case strings.HasPrefix(text, "unix://"):
		e.Address = text
	case strings.HasPrefix(text, "{"):
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			return e, fmt.Errorf("parse address: %w", err)
		}
	case proto.Unmarshal(out, &message) == nil && message.Address != "":
		e = Endpoint{Version: int(message.Version), Address: message.Address, Protocol: message.Protocol}
	default:
		return e, fmt.Errorf("parse address: %.200q is none: %w", text, errdefs.ErrInternal)
	}
	return e, e.check()
}

// Tidy removes from a bundle what a shim wrote there. One that was killed half way leaves what the next takes offence at.
func Tidy(bundle string) error {
	for _, name := range []string{LogFIFO, "address", "init.pid", "log.json", "options.json", "runtime", "shim.pid", "state.json", "work"} {
		for _, path := range []string{filepath.Join(bundle, name), filepath.Join(bundle, "."+name)} {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("tidy bundle: %w", err)
			}
		}
	}
	return nil
}

// Delete has the program clean up after a shim that died: what runs of the container is killed.
func (p *Program) Delete(ctx context.Context, scratch, bundle, id string) error {
	_, err := p.act(ctx, scratch, bundle, id, "delete")
	return err
}

// act runs one action of the program, and returns what it printed.
func (p *Program) act(ctx context.Context, scratch, bundle, id, action string) (_ []byte, err error) {
	var files [2]*os.File
	for i, name := range []string{"out", "err"} {
		f, err := os.CreateTemp(scratch, action+"-"+name+"-")
		if err != nil {
			return nil, fmt.Errorf("%s %s: make output file: %w", p.handler.Name, action, err)
		}
		defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
		files[i] = f
	}
	args := []string{"-namespace", Namespace, "-address", p.events, "-publish-binary", p.publish, "-id", id}
	if action == "delete" {
		args = append(args, "-bundle", bundle)
	}
	code, err := p.runner.Run(ctx, &ociruntime.Command{
		Path: p.path, Args: append(args, action), Dir: bundle, Stdout: files[0], Stderr: files[1],
		Env: []string{ociruntime.CloneDirectory + "=" + scratch, "GOMAXPROCS=2", "TTRPC_ADDRESS=" + p.events, "GRPC_ADDRESS=" + p.events, "NAMESPACE=" + Namespace, "MAX_SHIM_VERSION=2"},
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("%s %s did not finish in time: %w", p.handler.Name, action, ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("execute %s: %w: %w", p.path, err, errdefs.ErrFailedPrecondition)
	}
	var texts [2][]byte
	for i, f := range files {
		if texts[i], err = io.ReadAll(io.NewSectionReader(f, 0, maxOutput)); err != nil {
			return nil, fmt.Errorf("%s %s: read output: %w", p.handler.Name, action, err)
		}
	}
	if code != 0 {
		return nil, p.refusal(action, code, string(texts[1])+string(texts[0]))
	}
	return texts[0], nil
}

// refusal is an error in the shim's own words.
func (p *Program) refusal(op string, code int, message string) error {
	message = text.Cut(strings.TrimSpace(message), maxMessage)
	return &ociruntime.CommandError{Handler: p.handler.Name, Op: op, Code: code, Message: message}
}

// RemoveSocket removes what a shim that died left of its address.
func RemoveSocket(e Endpoint) error {
	err := os.Remove(e.Socket())
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return err
}
