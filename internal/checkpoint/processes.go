package checkpoint

import (
	"encoding/binary"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	kernelcap "github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/berth-runtime/berth/internal/directory"
)

// CRIU's images of threads: two magic numbers, then one protobuf message with its length before it.
const (
	coreImages     = "core-*.img"
	coreHeader     = 12
	magicCommon    = 0x54564319
	magicCore      = 0x55053847
	maxCoreImage   = 4 << 20
	fieldThread    = 5  // of core_entry
	fieldCreds     = 10 // of thread_core_entry
	fieldSeccomp   = 11
	fieldUID       = 1 // of creds_entry; then gid, euid, egid, suid, sgid, fsuid, fsgid
	fieldFsGID     = 8
	fieldInherited = 9 // capabilities: inherited, permitted, effective, bounding
	fieldBounding  = 12
	fieldGroups    = 14
	fieldProfile   = 15

	// seccompFilter is the mode of a thread with a filter.
	seccompFilter = 2
)

// thread has the rights of a thread, from an image of CRIU or from the kernel.
type thread struct {
	ids          map[protowire.Number]uint32
	capabilities map[protowire.Number][]uint32
	groups       []uint32
	profile      string
	seccomp      uint64
	// noNewPrivileges is known of live threads only.
	noNewPrivileges bool
}

// MatchProcesses compares the rights of the threads in CRIU's images with what a spec grants. CRIU gives
// a thread what its image says, so more than the spec grants is refused, with an error of kind
// ErrInvalidArgument. The instructions of a seccomp filter are not compared, nor what the processes have
// open or mounted.
func MatchProcesses(images string, spec *specs.Spec) error {
	files, err := filepath.Glob(filepath.Join(images, coreImages))
	if err != nil {
		return err
	}
	allowed := granted(spec)
	for _, file := range files {
		t, err := readThread(file)
		if err == nil && t != nil {
			err = allowed.check(t)
		}
		if err != nil {
			return fmt.Errorf("checkpoint image %s: %w: %w", filepath.Base(file), err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// rights are what a spec grants to the processes of a container.
type rights struct {
	capabilities   uint64
	uid, gid       uint32
	groups         []uint32
	profile        string
	seccomp        bool
	fixedUID       bool // no process can change its user
	fixedGID       bool
	fixedGroupList bool
}

func granted(spec *specs.Spec) rights {
	p := spec.Process
	r := rights{
		uid: p.User.UID, gid: p.User.GID, groups: append([]uint32{p.User.GID}, p.User.AdditionalGids...),
		profile: p.ApparmorProfile, seccomp: spec.Linux.Seccomp != nil,
	}
	has := func(string) bool { return false }
	if c := p.Capabilities; c != nil {
		for bit, name := range kernelcap.Known() {
			if slices.Contains(c.Bounding, name) || slices.Contains(c.Inheritable, name) {
				r.capabilities |= 1 << bit
			}
		}
		has = func(name string) bool { return slices.Contains(c.Bounding, name) }
	}
	// Without no_new_privs, a setuid program changes the user.
	r.fixedUID = p.NoNewPrivileges && !has("CAP_SETUID")
	r.fixedGID = p.NoNewPrivileges && !has("CAP_SETGID")
	r.fixedGroupList = !has("CAP_SETGID")
	return r
}

// check refuses a thread that has more than what is granted.
func (r rights) check(t *thread) error {
	for field := protowire.Number(fieldInherited); field <= fieldBounding; field++ {
		if more := wide(t.capabilities[field]) &^ r.capabilities; more != 0 {
			return fmt.Errorf("linux.security_context.capabilities: a thread has %#x, which the request does not grant", more)
		}
	}
	for field, id := range t.ids {
		isUser := field%2 == fieldUID%2
		if isUser && r.fixedUID && id != r.uid || !isUser && r.fixedGID && id != r.gid {
			return fmt.Errorf("linux.security_context: a thread runs as user or group %d, the request grants %d:%d", id, r.uid, r.gid)
		}
	}
	for _, group := range t.groups {
		if r.fixedGroupList && !slices.Contains(r.groups, group) {
			return fmt.Errorf("linux.security_context.supplemental_groups: a thread has group %d, which the request does not grant", group)
		}
	}
	if r.seccomp && t.seccomp != seccompFilter {
		return fmt.Errorf("linux.security_context.seccomp: a thread has no filter, the request gives one")
	}
	if r.profile != "" && t.profile != r.profile {
		return fmt.Errorf("linux.security_context.apparmor: a thread has profile %q, the request gives %q", t.profile, r.profile)
	}
	return nil
}

// wide joins the words of a set of capabilities, the low one first.
func wide(words []uint32) uint64 {
	var set uint64
	for i, word := range words {
		if i < 2 {
			set |= uint64(word) << (32 * i)
		} else if word != 0 {
			return ^uint64(0) // more capabilities than there are
		}
	}
	return set
}

// readThread reads an image of a thread; nil is that of a process that has ended.
func readThread(file string) (*thread, error) {
	f, err := directory.OpenRegular(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading only
	data, err := io.ReadAll(io.LimitReader(f, maxCoreImage+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxCoreImage || len(data) < coreHeader || binary.LittleEndian.Uint32(data) != magicCommon ||
		binary.LittleEndian.Uint32(data[4:]) != magicCore || uint64(binary.LittleEndian.Uint32(data[8:])) != uint64(len(data)-coreHeader) {
		return nil, fmt.Errorf("it is not one image of a thread, of at most %d bytes", maxCoreImage)
	}
	t := &thread{ids: map[protowire.Number]uint32{}, capabilities: map[protowire.Number][]uint32{}}
	found, creds := false, 0
	err = eachField(data[coreHeader:], func(field protowire.Number, _ uint64, core []byte) error {
		if field != fieldThread || core == nil {
			return nil
		}
		found = true
		return eachField(core, func(field protowire.Number, number uint64, value []byte) error {
			switch {
			case field == fieldSeccomp:
				t.seccomp = number
			case field == fieldCreds && value != nil:
				creds++
				return eachField(value, t.add)
			}
			return nil
		})
	})
	if err == nil && found && creds == 0 {
		err = fmt.Errorf("it has no credentials")
	}
	if err != nil || !found {
		return nil, err
	}
	return t, nil
}

// add takes a field of creds_entry. Lists are packed or one number each.
func (t *thread) add(field protowire.Number, number uint64, value []byte) error {
	numbers := []uint32{uint32(number)}
	if value != nil && field != fieldProfile {
		numbers = nil
		for len(value) > 0 {
			n, size := protowire.ConsumeVarint(value)
			if size < 0 {
				return protowire.ParseError(size)
			}
			numbers, value = append(numbers, uint32(n)), value[size:]
		}
	}
	switch {
	case field >= fieldUID && field <= fieldFsGID && len(numbers) > 0:
		t.ids[field] = numbers[len(numbers)-1]
	case field >= fieldInherited && field <= fieldBounding:
		t.capabilities[field] = append(t.capabilities[field], numbers...)
	case field == fieldGroups:
		t.groups = append(t.groups, numbers...)
	case field == fieldProfile:
		t.profile = string(value)
	}
	return nil
}

// eachField calls fn with each field of a message: its number if it is one, its bytes if it has a length.
func eachField(message []byte, fn func(field protowire.Number, number uint64, value []byte) error) error {
	for len(message) > 0 {
		field, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		var number uint64
		var value []byte
		switch kind {
		case protowire.VarintType:
			number, size = protowire.ConsumeVarint(message)
		case protowire.BytesType:
			value, size = protowire.ConsumeBytes(message)
			value = append([]byte{}, value...) // not nil
		default:
			size = protowire.ConsumeFieldValue(field, kind, message)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		if err := fn(field, number, value); err != nil {
			return err
		}
		message = message[size:]
	}
	return nil
}
