package spec

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/warning"
)

// defaultOCIVersion is understood by every OCI runtime in use.
const defaultOCIVersion = "1.0.2"

// The annotations by which hooks and sandboxing OCI runtimes recognise a
// container of Kubernetes, beside those that package ociruntime names.
// Annotations of the request are passed on only where the administrator has
// allowed it: some OCI runtimes change their behaviour by annotation, which is
// not for a pod's author to decide.
const (
	annotationContainerName = "io.kubernetes.cri.container-name"
	annotationImageName     = "io.kubernetes.cri.image-name"
	annotationSandboxName   = "io.kubernetes.cri.sandbox-name"
	annotationNamespace     = "io.kubernetes.cri.sandbox-namespace"
	annotationSandboxUID    = "io.kubernetes.cri.sandbox-uid"
)

// Build makes the spec of a container, and refuses what cannot be granted:
// with nil, an OCI runtime that works on this host can start the container.
// The root file system must be mounted at in.Rootfs. It ends when ctx does.
func Build(ctx context.Context, in Input) (*Output, error) {
	if err := Validate(in.Config, in.Pod); err != nil {
		return nil, err
	}
	if err := CheckImage(in.Image); err != nil {
		return nil, err
	}
	in.warnings, in.applied, in.Defaults = &warning.List{}, map[string]string{}, cmp.Or(in.Defaults, &Defaults{})
	process, err := firstProcess(ctx, in)
	if err != nil {
		return nil, err
	}
	passwd, err := passwdFile(in, process)
	if err != nil {
		return nil, err
	}
	mounts, err := mounts(ctx, in, passwd != nil)
	if err != nil {
		return nil, err
	}
	linux, binds, err := linuxSection(ctx, in)
	if err != nil {
		return nil, err
	}
	linux.RootfsPropagation = mounts.propagation
	sc := in.Config.GetLinux().GetSecurityContext()
	result := &specs.Spec{
		Version:     choose(in.OCIVersion, defaultOCIVersion),
		Process:     process,
		Root:        &specs.Root{Path: in.Rootfs, Readonly: sc.GetReadonlyRootfs()},
		Mounts:      mounts.mounts,
		Annotations: annotations(in),
		Linux:       linux,
	}
	if err := injectCDI(ctx, in, result); err != nil {
		return nil, err
	}
	if mounts.has(devDir) {
		// The device nodes come with it; making them would change the source.
		linux.Devices = nil
	} else {
		result.Mounts = append(result.Mounts, binds...)
	}
	if err := applySeccomp(ctx, in, result); err != nil {
		return nil, err
	}
	injectHooks(in, result)
	return &Output{
		Spec:       result,
		User:       containerUser(process.User),
		StopSignal: stopSignal(in),
		Warnings:   *in.warnings,
		Passwd:     passwd,
		Defaults:   in.applied,
	}, nil
}

// firstProcess makes the process section.
func firstProcess(ctx context.Context, in Input) (process *specs.Process, err error) {
	sc := in.Config.GetLinux().GetSecurityContext()
	process = &specs.Process{
		Terminal:        in.Config.GetTty(),
		NoNewPrivileges: sc.GetNoNewPrivs(),
	}
	for _, part := range []struct {
		name string
		make func() error
	}{
		{"user", func() error { process.User, err = resolveUser(in); return err }},
		{"arguments", func() error { process.Args, err = arguments(in); return err }},
		{"environment", func() error { process.Env, err = environment(in); return err }},
	} {
		if err := goesOn(ctx, part.name); err != nil {
			return nil, err
		}
		if err := part.make(); err != nil {
			return nil, err
		}
	}
	if process.Cwd, err = workingDir(in); err != nil {
		return nil, err
	}
	if process.Capabilities, err = capabilities(in); err != nil {
		return nil, err
	}
	if process.ApparmorProfile, err = appArmorProfile(in); err != nil {
		return nil, err
	}
	if err = checkSELinux(sc, in.Host, in.warnings); err != nil {
		return nil, err
	}
	process.SelinuxLabel = in.ProcessLabel
	process.OOMScoreAdj = oomScoreAdj(in)
	process.Rlimits = slices.Clone(in.Defaults.rlimits)
	in.apply("ulimits", in.Defaults.rlimitsText)
	return process, nil
}

// goesOn returns an error once the request has ended, with the section that is not made any more.
func goesOn(ctx context.Context, section string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", section, err)
	}
	return nil
}

// linuxSection makes the linux section but for seccomp and the propagation of
// the root, which depend on other sections. The mounts are devices too.
func linuxSection(ctx context.Context, in Input) (linux *specs.Linux, binds []specs.Mount, err error) {
	if err := goesOn(ctx, "linux"); err != nil {
		return nil, nil, err
	}
	linux = &specs.Linux{CgroupsPath: in.CgroupsPath, MountLabel: in.MountLabel}
	if linux.Namespaces, err = namespaces(in); err != nil {
		return nil, nil, err
	}
	if linux.Resources, err = Resources(in.Config.GetLinux().GetResources(), in.Host, in.warnings); err != nil {
		return nil, nil, err
	}
	devices, err := devices(ctx, in)
	if err != nil {
		return nil, nil, err
	}
	var mapped bool
	if linux.UIDMappings, linux.GIDMappings, mapped = UserNamespace(in.Pod); mapped {
		if binds, err = devices.bindRenamed(ctx); err != nil {
			return nil, nil, err
		}
	}
	linux.Devices = devices.nodes
	linux.Resources.Devices = devices.rules
	applyPaths(in.Config.GetLinux().GetSecurityContext(), linux)
	return linux, binds, nil
}

// apply notes a default that the container gets, if it is not empty.
func (in Input) apply(key, value string) {
	if value != "" && in.applied != nil {
		in.applied[key] = value
	}
}

// injectHooks adds the hooks that match the container, whose spec is complete but for what plugins change.
func injectHooks(in Input, result *specs.Spec) {
	if in.Defaults.Hooks == nil {
		return
	}
	all := maps.Clone(in.Config.GetAnnotations())
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, in.Pod.GetAnnotations())
	in.apply("hooks_dir", strings.Join(in.Defaults.Hooks.Inject(result, all, len(in.Config.GetMounts()) > 0), " "))
}

func annotations(in Input) map[string]string {
	result := podAnnotations(in)
	image := in.Config.GetImage()
	maps.Copy(result, map[string]string{
		annotationContainerName: in.Config.GetMetadata().GetName(),
		annotationImageName:     choose(image.GetUserSpecifiedImage(), image.GetImage()),
	})
	if in.Sandboxed {
		result[ociruntime.AnnotationContainerType] = ociruntime.ContainerTypeContainer
	}
	return result
}

// podAnnotations are those that are passed on, and those that name the pod.
func podAnnotations(in Input) map[string]string {
	result := map[string]string{}
	// Those of the container have precedence, and ours over both.
	for _, given := range []map[string]string{in.Pod.GetAnnotations(), in.Config.GetAnnotations()} {
		for key, value := range given {
			if slices.ContainsFunc(in.AllowedAnnotations, func(pattern string) bool { return matches(pattern, key) }) {
				result[key] = value
			}
		}
	}
	maps.Copy(result, map[string]string{
		ociruntime.AnnotationSandboxID: in.SandboxID,
		annotationSandboxName:          in.Pod.GetMetadata().GetName(),
		annotationNamespace:            in.Pod.GetMetadata().GetNamespace(),
		annotationSandboxUID:           in.Pod.GetMetadata().GetUid(),
	})
	return result
}

// matches is like a shell's: * stands for anything but a slash.
func matches(pattern, key string) bool {
	matched, err := path.Match(pattern, key)
	return err == nil && matched
}
