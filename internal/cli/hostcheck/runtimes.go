package hostcheck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/handlers"
	"github.com/berth-runtime/berth/internal/ociruntime/shimv2"
)

const areaRuntime = "runtime"

// runtimes runs a throw-away container with each handler.
func (f *facts) runtimes(ctx context.Context, c *config.Config, root bool) {
	if !root {
		f.needsRoot(areaRuntime, "handlers")
		return
	}
	if err := sweepTrials(ctx); err != nil {
		f.warn(areaRuntime, "handlers", "of an earlier check something is left: "+err.Error(), "remove it")
	}
	probes, err := newScratch(os.TempDir(), trialsPrefix)
	if err != nil {
		f.warn(areaRuntime, "handlers", "not tried: "+err.Error(), "make room where $TMPDIR points to")
		return
	}
	defer func() {
		if err := probes.removeEmpty(); err != nil {
			f.warn(areaRuntime, "handlers", "files of the handler probe are left: "+err.Error(), "remove it")
		}
	}()
	systemd := cgroup.ChooseDriver(c.Runtime.CgroupDriver) == cgroup.Systemd
	works := map[string]bool{}
	var checkpoint []string
	for _, name := range slices.Sorted(maps.Keys(c.Runtime.Handlers)) {
		var features ociruntime.Features
		features, works[name] = f.handler(ctx, name, c.Runtime.Handlers[name], systemd, probes.path)
		if works[name] && features.Checkpoint {
			checkpoint = append(checkpoint, name)
		}
	}
	f.defaultHandler(c.Runtime.DefaultHandler, works)
	f.checkpoints(checkpoint, new(ociruntime.CRIU).Check(ctx))
}

// checkpoints says whether containers can be checkpointed and restored, with which handlers.
func (f *facts) checkpoints(with []string, problem error) {
	const name = "checkpoints"
	switch {
	case len(with) == 0:
		f.info(areaRuntime, name, "no handler here is made for them; runc is")
	case errdefs.IsNotFound(problem):
		f.warn(areaRuntime, name, "none: criu is not installed", "for checkpoints with "+strings.Join(with, ", ")+", install criu 3.17 or newer")
	case problem != nil:
		f.warn(areaRuntime, name, "none: "+problem.Error(), "for checkpoints, install a version of criu that knows this kernel")
	default:
		f.ok(areaRuntime, name, "CRIU works, with "+strings.Join(with, ", "))
	}
}

func (f *facts) handler(ctx context.Context, name string, h config.Handler, systemd bool, probes string) (_ ociruntime.Features, works bool) {
	program := h.Path
	if h.Type == config.HandlerShimV2 {
		program = shimv2.ProgramName(program)
	}
	if _, err := exec.LookPath(program); err != nil {
		// One of the two that exist without being configured need not be there.
		remedy := "install it (Debian: apt install " + h.Path + "), or correct runtime.handlers." + name + ".path"
		if slices.Contains(handlers.Preferred, name) {
			f.info(areaRuntime, name, program+" is not installed")
		} else {
			f.warn(areaRuntime, name, program+" is not installed", remedy)
		}
		return ociruntime.Features{}, false
	}
	features, err := handlers.Probe(ctx, ociruntime.Handler{
		Name: name, Type: h.Type, Path: h.Path, Root: h.Root, SystemdCgroup: systemd, Options: h.Options,
	}, probes)
	if err != nil {
		reason, remedy := explainProbe(err)
		f.warn(areaRuntime, name, reason, remedy)
		return features, false
	}
	found := fmt.Sprintf("%s runs containers, OCI %s", features.Version, features.OCIVersion)
	if features.RecursiveReadOnly {
		found += ", recursive read-only mounts"
	}
	if features.UserNamespaces {
		found += ", user namespaces"
	} else {
		found += ", no user namespaces: " + features.UserNamespacesProblem
	}
	f.ok(areaRuntime, name, found)
	f.vulnerabilities(name, features)
	return features, true
}

// vulnerabilities names those that are known of the version of an OCI runtime.
func (f *facts) vulnerabilities(name string, features ociruntime.Features) {
	known := ociruntime.KnownVulnerabilities(features.Program, features.Version)
	if len(known) == 0 {
		return
	}
	var texts []string
	for _, v := range known {
		texts = append(texts, fmt.Sprintf("%s (%s; fixed in %s; %s)", v.ID, v.Summary, strings.Join(v.Fixed, ", "), v.Source))
	}
	f.warn(areaRuntime, name+" vulnerabilities", fmt.Sprintf("%s %s, %s: %s", features.Program, features.Version, ociruntime.BackportNote, strings.Join(texts, ", ")),
		"compare with the security notices of your distribution, or install a newer "+features.Program)
}

// explainProbe returns why a handler does not work and what to do about it.
func explainProbe(err error) (reason, remedy string) {
	const general = "see why with the runtime's own --debug, or choose another with runtime.default_handler"
	var failed *ociruntime.ProbeError
	if !errors.As(err, &failed) {
		return err.Error(), general
	}
	return failed.Err.Error(), cmp.Or(failed.Remedy, general)
}

// defaultHandler says which handler pods get that ask for none.
func (f *facts) defaultHandler(configured string, works map[string]bool) {
	if configured != "" {
		if works[configured] {
			f.ok(areaRuntime, "default", configured+", as configured")
			return
		}
		f.fail(areaRuntime, "default", configured+", as configured, does not work", "see above, or leave runtime.default_handler empty")
		return
	}
	for _, name := range append(slices.Clone(handlers.Preferred), slices.Sorted(maps.Keys(works))...) {
		if works[name] {
			f.ok(areaRuntime, "default", name)
			return
		}
	}
	f.fail(areaRuntime, "default", "no handler works here", "install one of them (Debian: apt install crun), or name another in runtime.default_handler")
}
