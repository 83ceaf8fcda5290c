package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestPodInitCannotBeTraced: a container with the user of the pod's init process can neither trace it nor read its memory,
// with and without a user namespace, and root of a user namespace that may trace cannot either. The process has its own seccomp
// filter, no capabilities and no way to new ones, so that control over it gains nothing.
func TestPodInitCannotBeTraced(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	for name, change := range map[string]func(*runtimeapi.PodSandboxConfig){
		"plain": func(*runtimeapi.PodSandboxConfig) {}, "mapped": userNamespace,
	} {
		t.Run(name, func(t *testing.T) {
			p := n.RunPod(change, func(c *runtimeapi.PodSandboxConfig) {
				c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
			})
			init := cgroupPID(t, "infra-"+p.ID)
			status, err := os.ReadFile("/proc/" + init + "/status")
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{
				"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2",
			} {
				if !strings.Contains(string(status), want) {
					t.Errorf("status of the init process has no %q:\n%s", want, status)
				}
			}
			root := p.Start([]string{"sleep", "1000"}, likePod(p))
			var uid, gid int64
			line := root.Output("grep", "-E", "^(Uid|Gid)", "/proc/1/status")
			if _, err := fmt.Sscanf(strings.ReplaceAll(line, "\n", " "), "Uid: %d %d %d %d Gid: %d", &uid, new(int), new(int), new(int), &gid); err != nil {
				t.Fatalf("%v in %q", err, line)
			}
			if uid == 0 || uid == 65534 {
				t.Errorf("the init process has the uid %d, which images use", uid)
			}
			same := p.Start([]string{"sleep", "1000"}, likePod(p), func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: uid}
				c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: gid}
			})
			attackers := []*harness.Container{same}
			if name == "mapped" { // its rights end at the user namespace
				attackers = append(attackers, p.Start([]string{"sleep", "1000"}, likePod(p), func(c *runtimeapi.ContainerConfig) {
					c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_PTRACE"}}
				}))
			}
			for _, attacker := range attackers {
				for _, file := range []string{"mem", "maps", "environ", "root/"} { // the first takes the rights of a tracer
					if got := attacker.Exec("sh", "-c", "exec 3</proc/1/"+file+" && head -c 1 <&3"); got.ExitCode == 0 || !strings.Contains(string(got.Stderr), "ermission denied") {
						t.Errorf("/proc/1/%s: exit code %d, %s%s, want permission denied", file, got.ExitCode, got.Stdout, got.Stderr)
					}
				}
			}
		})
	}
}
