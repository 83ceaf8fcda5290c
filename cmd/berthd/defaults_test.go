package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-runtime/berth/test/leakcheck"
)

// TestDefaultsOfPodsAreCheckedAtStart: a daemon does not start with a default that no container could get. The error names file,
// line, key, value and reason.
func TestDefaultsOfPodsAreCheckedAtStart(t *testing.T) {
	leakcheck.Check(t)
	dir := leakcheck.Dir(t)
	put := func(name, text string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	program := put("program", "#!/bin/sh\n", 0o755)
	hook := func(name, format string, mode os.FileMode) string {
		return filepath.Dir(put("hooks/"+name+"/hook.json", fmt.Sprintf(format, program), mode))
	}
	good := `{"version": "1.0.0", "hook": {"path": %q}, "when": {"always": true}, "stages": ["poststop"]}`
	for i, test := range []struct {
		setting string
		words   []string
	}{
		{`pod.sysctls = { "vm.swappiness" = "1" }`, []string{"pod.sysctls", "vm.swappiness", "whole node"}},
		{`pod.sysctls = { "kernel.hostname" = "x" }`, []string{"pod.sysctls", "kernel.hostname", "hostname of the pod"}},
		{`pod.sysctls = { "net.core/../x" = "1" }`, []string{"pod.sysctls", "net.core/../x"}},
		{`pod.sysctls = { "somaxconn" = "1" }`, []string{"pod.sysctls", "somaxconn", "no name of a sysctl"}},
		{`pod.ulimits = ["nofile=2:1"]`, []string{"pod.ulimits", "nofile=2:1", "above the hard one"}},
		{`pod.ulimits = ["files=1"]`, []string{"pod.ulimits", "files=1", "not known"}},
		{`pod.ulimits = ["nofile=1", "nofile=2"]`, []string{"pod.ulimits", "element 2", "second limit nofile"}},
		{`pod.ulimits = ["nofile=18446744073709551616"]`, []string{"pod.ulimits", "too large"}},
		{`pod.capabilities = ["ALL"]`, []string{"pod.capabilities", "ALL", "not a capability"}},
		{`pod.env = ["=x"]`, []string{"pod.env", "element 1", "NAME=VALUE"}},
		{`pod.timezone = "../../etc/shadow"`, []string{"pod.timezone", "../../etc/shadow", "no time zone"}},
		{`pod.timezone = "Europe/Atlantis"`, []string{"pod.timezone", "Europe/Atlantis", "does not exist"}},
		{`pod.timezone = "tzdata.zi"`, []string{"pod.timezone", "tzdata.zi", "no time zone"}},
		{`pod.shm_size = "0"`, []string{"pod.shm_size", `"0"`, "at least"}},
		{`pod.shm_size = "9999999999 TiB"`, []string{"pod.shm_size", "9999999999 TiB", "too large"}},
		{`pod.shm_size = "64 apples"`, []string{"pod.shm_size", "64 apples", "no size"}},
		{`pod.seccomp_profile = "/dev/null"`, []string{"pod.seccomp_profile", "/dev/null", "not a regular file"}},
		{fmt.Sprintf("pod.seccomp_profile = %q", put("profile", "{}", 0o600)), []string{"pod.seccomp_profile", "defaultAction"}},
		{fmt.Sprintf("pod.unset_seccomp_profile = %q", "localhost/"+dir+"/none"), []string{"pod.unset_seccomp_profile", dir + "/none", "no such file"}},
		{`pod.unset_seccomp_profile = "docker"`, []string{"pod.unset_seccomp_profile", "docker", "not known"}},
		{fmt.Sprintf("pod.hooks_dir = %q", hook("writable", good, 0o646)), []string{"pod.hooks_dir", "writable/hook.json", "0646"}},
		{fmt.Sprintf("pod.hooks_dir = %q", hook("version", `{"version": "2", "hook": {"path": %q}}`, 0o644)), []string{"pod.hooks_dir", "version/hook.json", `"2"`}},
		{fmt.Sprintf("pod.hooks_dir = %q", hook("stage", strings.Replace(good, "poststop", "later", 1), 0o644)), []string{"pod.hooks_dir", "stages", "later"}},
		{fmt.Sprintf("pod.hooks_dir = %q", hook("pattern", strings.Replace(good, `"always": true`, `"commands": ["("]`, 1), 0o644)), []string{"pod.hooks_dir", "when.commands"}},
		{fmt.Sprintf("pod.hooks_dir = %q", hook("program", strings.Replace(good, "%q", `%q, "path": "/dev/null"`, 1), 0o644)), []string{"pod.hooks_dir", "hook.path", "/dev/null"}},
		{`listen_group = "no-such-group"`, []string{"listen_group", "no-such-group", "no such group"}},
		{`listen_group = "a b"`, []string{"listen_group", "a b", "no group"}},
		{`runtime.handlers.crun.privileged_without_host_devices_all_devices_allowed = true`,
			[]string{"runtime.handlers.crun.privileged_without_host_devices_all_devices_allowed", "want both"}},
	} {
		file := put(fmt.Sprintf("config%d.toml", i), "# the second line is wrong\n"+test.setting+"\n", 0o600)
		var out, errs bytes.Buffer
		args := []string{"--config", file, "--root", dir + "/root", "--state", dir + "/run", "--listen", "unix://" + dir + "/s"}
		if code := run(args, &out, &errs); code == 0 {
			t.Errorf("%s: the daemon ended well", test.setting)
		}
		for _, want := range append(test.words, file+":2") {
			if !strings.Contains(strings.ReplaceAll(errs.String(), `\"`, `"`), want) {
				t.Errorf("%s: the error lacks %s: %s", test.setting, want, errs.String())
			}
		}
	}
}
