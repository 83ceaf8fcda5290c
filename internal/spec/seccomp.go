package spec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/directory"
)

// maxProfile bounds the size of a seccomp profile.
const maxProfile = 4 << 20

// profileFile is a seccomp profile on disk: the OCI form, and Docker's, which
// adds a table of architectures and conditions on rules.
type profileFile struct {
	specs.LinuxSeccomp
	ArchMap []struct {
		Architecture     specs.Arch   `json:"architecture"`
		SubArchitectures []specs.Arch `json:"subArchitectures"`
	} `json:"archMap"`
	Syscalls []profileRule `json:"syscalls"`
}

// profileRule is a rule with Docker's conditions.
type profileRule struct {
	specs.LinuxSyscall
	Name     string    `json:"name"`
	Includes condition `json:"includes"`
	Excludes condition `json:"excludes"`
}

// condition restricts a rule. An empty one restricts nothing.
type condition struct {
	Caps      []string `json:"caps"`
	Arches    []string `json:"arches"`
	MinKernel string   `json:"minKernel"`
}

// applySeccomp sets the seccomp filter of a spec whose capabilities are set. A request without a profile gets the one that is
// configured for that, none unless it is.
func applySeccomp(ctx context.Context, in Input, spec *specs.Spec) error {
	const field = "linux.security_context.seccomp"
	if err := goesOn(ctx, field); err != nil {
		return err
	}
	sc, host := in.Config.GetLinux().GetSecurityContext(), in.Host
	profile := sc.GetSeccomp()
	if sc.GetPrivileged() {
		return nil
	}
	if profile == nil {
		return applyDefault(in, "unset_seccomp_profile", in.Defaults.unset, spec)
	}
	switch profile.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		if !host.Seccomp {
			in.warnings.Add(field, profile.GetProfileType(), "is ignored: the kernel of this host has no seccomp filters")
			return nil
		}
		chosen := in.Defaults.seccomp
		if chosen.name == "" {
			chosen.name = builtinProfile
		}
		return applyDefault(in, "seccomp_profile", chosen, spec)
	case runtimeapi.SecurityProfile_Localhost:
		if !host.Seccomp {
			return unavailable(field, profile.GetLocalhostRef(), "the kernel of this host has no seccomp filters")
		}
		loaded, err := loadProfile(field+".localhost_ref", profile.GetLocalhostRef(), spec.Process.Capabilities)
		spec.Linux.Seccomp = loaded
		return err
	default:
		return nil
	}
}

// applyDefault sets a default profile, where the kernel has filters and there is one.
func applyDefault(in Input, key string, profile seccompDefault, spec *specs.Spec) (err error) {
	if profile.name == "" || !in.Host.Seccomp {
		return nil
	}
	in.apply(key, profile.name)
	if profile.file == nil {
		spec.Linux.Seccomp = seccomp.DefaultProfile(spec)
		return nil
	}
	spec.Linux.Seccomp, err = profile.file.resolve(spec.Process.Capabilities.Bounding)
	return err
}

// loadProfile reads and checks a seccomp profile, so that a wrong one is
// refused when the container is created and not when it starts.
func loadProfile(field, file string, caps *specs.LinuxCapabilities) (*specs.LinuxSeccomp, error) {
	data, err := readProfile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, invalid(field, file, "does not exist")
	}
	if err != nil {
		return nil, invalid(field, file, err.Error())
	}
	profile, err := parseProfile(data, caps.Bounding)
	if err != nil {
		return nil, invalid(field, file, err.Error())
	}
	return profile, nil
}

func parseProfile(data []byte, caps []string) (*specs.LinuxSeccomp, error) {
	content, err := decodeProfile(data)
	if err != nil {
		return nil, err
	}
	return content.resolve(caps)
}

func decodeProfile(data []byte) (*profileFile, error) {
	var content profileFile
	if err := json.Unmarshal(data, &content); err != nil {
		return nil, fmt.Errorf("is not a seccomp profile: %w", err)
	}
	return &content, nil
}

func readProfile(file string) ([]byte, error) {
	f, err := directory.OpenRegular(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading only
	data, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	if err == nil && len(data) > maxProfile {
		err = fmt.Errorf("is larger than %d bytes", maxProfile)
	}
	return data, err
}

// resolve decides Docker's conditions for this machine and a container with
// the capabilities, and checks every name.
func (p *profileFile) resolve(caps []string) (*specs.LinuxSeccomp, error) {
	profile := p.LinuxSeccomp
	profile.Syscalls = nil
	if err := checkAction("defaultAction", profile.DefaultAction); err != nil {
		return nil, err
	}
	for _, entry := range p.ArchMap {
		if len(profile.Architectures) == 0 && entry.Architecture == nativeArch() {
			profile.Architectures = append([]specs.Arch{entry.Architecture}, entry.SubArchitectures...)
		}
	}
	for _, arch := range profile.Architectures {
		if !slices.Contains(knownArchs, arch) {
			return nil, fmt.Errorf("architectures: %q is unknown", arch)
		}
	}
	for i, rule := range p.Syscalls {
		if rule.Name != "" {
			rule.Names = slices.Concat(rule.Names, []string{rule.Name}) // rules are shared
		}
		if err := checkRule(fmt.Sprintf("syscalls[%d]", i), rule.LinuxSyscall); err != nil {
			return nil, err
		}
		holds, err := rule.applies(caps)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		if holds && len(rule.Names) > 0 {
			profile.Syscalls = append(profile.Syscalls, rule.LinuxSyscall)
		}
	}
	return &profile, nil
}

func checkRule(field string, rule specs.LinuxSyscall) error {
	if slices.Contains(rule.Names, "") {
		return fmt.Errorf("%s.names: must name system calls", field)
	}
	if err := checkAction(field+".action", rule.Action); err != nil {
		return err
	}
	for i, arg := range rule.Args {
		// A system call has six arguments.
		if arg.Index > 5 {
			return fmt.Errorf("%s.args[%d].index: %d is greater than 5", field, i, arg.Index)
		}
		if !slices.Contains(knownOperators, arg.Op) {
			return fmt.Errorf("%s.args[%d].op: %q is unknown", field, i, arg.Op)
		}
	}
	return nil
}

// applies tells whether the conditions of a rule hold.
func (r profileRule) applies(caps []string) (bool, error) {
	has := func(name string) bool { return slices.Contains(caps, name) }
	if slices.ContainsFunc(r.Excludes.Caps, has) || slices.Contains(r.Excludes.Arches, runtime.GOARCH) {
		return false, nil
	}
	if len(r.Includes.Arches) > 0 && !slices.Contains(r.Includes.Arches, runtime.GOARCH) {
		return false, nil
	}
	for _, name := range r.Includes.Caps {
		if !has(name) {
			return false, nil
		}
	}
	for _, bound := range []struct {
		version string
		wanted  bool
	}{{r.Includes.MinKernel, true}, {r.Excludes.MinKernel, false}} {
		if bound.version == "" {
			continue
		}
		reached, err := kernelAtLeast(bound.version)
		if err != nil || reached != bound.wanted {
			return false, err
		}
	}
	return true, nil
}

// kernelAtLeast compares the running kernel with a version like "4.8".
func kernelAtLeast(version string) (bool, error) {
	var major, minor, wantMajor, wantMinor int
	if _, err := fmt.Sscanf(version, "%d.%d", &wantMajor, &wantMinor); err != nil {
		return false, fmt.Errorf("minKernel %q: must be like 4.8", version)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return false, err
	}
	release := unix.ByteSliceToString(name.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false, fmt.Errorf("kernel release %q: %w", release, err)
	}
	return major > wantMajor || major == wantMajor && minor >= wantMinor, nil
}

func checkAction(field string, action specs.LinuxSeccompAction) error {
	if !slices.Contains(knownActions, action) {
		return fmt.Errorf("%s: %q is unknown", field, action)
	}
	return nil
}

// nativeArch returns the name that profiles use for this machine, "" if they
// have none.
func nativeArch() specs.Arch {
	switch runtime.GOARCH {
	case "amd64":
		return specs.ArchX86_64
	case "arm64":
		return specs.ArchAARCH64
	default:
		return specs.Arch("SCMP_ARCH_" + strings.ToUpper(runtime.GOARCH))
	}
}

var (
	knownActions = []specs.LinuxSeccompAction{
		specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno,
		specs.ActTrace, specs.ActAllow, specs.ActLog, specs.ActNotify,
	}
	knownOperators = []specs.LinuxSeccompOperator{
		specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
		specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
	}
	knownArchs = []specs.Arch{
		specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64,
		specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64,
		specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390,
		specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64, specs.ArchLOONGARCH64,
	}
)
