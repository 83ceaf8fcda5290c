package spec

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
)

// FuzzBuild feeds whatever decodes as a CRI request: no request may make the
// daemon panic, and what is accepted can be written for the OCI runtime.
func FuzzBuild(f *testing.F) {
	for _, golden := range goldens {
		in := testInput(f)
		golden.change(&in, "/tmp")
		config, err := proto.Marshal(in.Config)
		if err != nil {
			f.Fatal(err)
		}
		pod, err := proto.Marshal(in.Pod)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(config, pod, "app:www-data", "SIGRTMIN+3")
	}
	f.Add([]byte{}, []byte{}, "", "")
	base := testInput(f)
	f.Fuzz(func(t *testing.T, config, pod []byte, user, signal string) {
		in := base
		in.Config, in.Pod = &runtimeapi.ContainerConfig{}, &runtimeapi.PodSandboxConfig{}
		if proto.Unmarshal(config, in.Config) != nil || proto.Unmarshal(pod, in.Pod) != nil {
			return
		}
		in.Image.User, in.Image.StopSignal = user, signal
		sandboxErr := ValidateSandbox(in.Pod)
		for _, mode := range []cgroup.Mode{cgroup.V1, cgroup.V2} {
			in.Host = testHost(mode)
			out, err := Build(t.Context(), in)
			if err != nil {
				continue
			}
			if sandboxErr == nil && CheckSandbox(in.Pod, in.Host) == nil && out.StopSignal == "" {
				t.Error("accepted without a stop signal")
			}
			if _, err := json.Marshal(out.Spec); err != nil {
				t.Errorf("accepted, but cannot be written: %v", err)
			}
			if Process(out.Spec.Process, []string{"x"}, true) == nil {
				t.Error("no process for an exec")
			}
		}
	})
}

// FuzzAccounts feeds passwd and group files of an image.
func FuzzAccounts(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/sh\n"), []byte("root:x:0:\n"), "root:root")
	f.Add([]byte(":::\n-1:x:-1:-1\n"), []byte("a:x:99999999999:b,c\n#\n"), "4294967295:4294967294")
	f.Fuzz(func(t *testing.T, passwd, group []byte, name string) {
		accounts, err := parseAccounts(passwd, group)
		if err != nil {
			return
		}
		who, err := accounts.find("user of the image", name)
		if err == nil && (who.uid > maxID || who.gid > maxID) {
			t.Errorf("got %+v, want IDs up to %d", who, uint32(maxID))
		}
		accounts.groupsOf(who.name)
	})
}

// FuzzProfile feeds seccomp profiles.
func FuzzProfile(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
		"syscalls":[{"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_BPF"],"minKernel":"4.8"},"args":[{"index":1,"op":"SCMP_CMP_EQ"}]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		profile, err := parseProfile(data, []string{"CAP_BPF"})
		if err != nil {
			return
		}
		if err := checkAction("", profile.DefaultAction); err != nil {
			t.Errorf("accepted: %v", err)
		}
	})
}
