package vm

import (
	"path"
	"time"
)

// testProgram is the name of a package's test binary, in the directory of the package.
const testProgram = "program.test"

// testStep runs tests of a package.
func testStep(name, pkg, pattern string, deadline time.Duration, env ...string) Step {
	dir := path.Join(Mountpoint, "tree", pkg)
	return Step{
		Name: name, Dir: dir, Deadline: deadline,
		Argv: []string{path.Join(dir, testProgram), "-test.v", "-test.timeout=0", "-test.run=" + pattern},
		Env:  append([]string{"BERTH_BIN=" + binDir}, env...),
	}
}

// critestStep runs specs of critest with an OCI runtime.
func critestStep(name, pass, focus string, deadline time.Duration, env ...string) Step {
	s := testStep(name, "test/conformance", "TestCritest", deadline, env...)
	s.Argv = append(s.Argv, "-passes="+pass, "-focus="+focus, "-prepared="+conformanceDir)
	return s
}

// serviceStep runs the tests of the systemd service.
func serviceStep(deadline time.Duration) Step {
	s := testStep("service", "test/service", ".", deadline)
	s.Argv = append(s.Argv, "-live")
	return s
}

// core are those integration tests which cgroups, systemd or the kernel's version can make fail; what is left out does the
// same on every host, and takes ten times as long here.
const core = "^(" +
	"TestResources|TestOOM|TestUpdateEverything|" + // limits, and what is counted
	"TestStopSignal|TestRestart|TestExitWhileAway|TestKillShim|TestKillBoth|" + // ends, with and without help of a pidfd
	"TestExecSync|TestMounts|TestNamespaces|TestStats" + // processes beside the first one, mounts, figures
	")$"

// specs are critest's about AppArmor, user namespaces, lack of memory and resources.
const specs = "AppArmor|UserNamespace|user namespace|OOM|[Rr]esources|oom"

// plan is what `make test-vm` runs with a security module.
func plan(module string) []Step {
	const deadline = 10 * time.Minute
	systemd, cgroupfs := "BERTH_CGROUP_DRIVER=systemd", "BERTH_CGROUP_DRIVER=cgroupfs"
	if module == "selinux" {
		return []Step{
			testStep("core/systemd", "test/integration", "^(TestExecSync|TestMounts)$", deadline, systemd),
			critestStep("critest/systemd", "runc,crun", specs+"|SELinux", deadline, systemd),
		}
	}
	return []Step{
		testStep("cgroup", "internal/cgroup", ".", deadline),
		serviceStep(deadline),
		testStep("core/systemd", "test/integration", core, deadline, systemd),
		testStep("core/cgroupfs", "test/integration", core, deadline, cgroupfs),
		critestStep("critest/systemd", "runc,crun", specs, deadline, systemd),
		critestStep("critest/cgroupfs", "runc,crun", specs, deadline, cgroupfs),
	}
}
