package vm

import (
	"path"
	"strings"
	"time"

	"github.com/berth-runtime/berth/test/isolation"
)

// testProgram is the name of a package's test binary, in the directory of the package.
const testProgram = "program.test"

// testStep runs tests of a package.
func testStep(name, pkg, pattern string, deadline time.Duration, env ...string) Step {
	dir := path.Join(Mountpoint, "tree", pkg)
	return Step{
		Name: name, Dir: dir, Deadline: deadline,
		Argv: []string{path.Join(dir, testProgram), "-test.v", "-test.timeout=0", "-test.run=" + pattern},
		// The machine exists for these tests, and systemd starts some of their processes.
		Env: append([]string{"BERTH_BIN=" + binDir, isolation.Variable + "=" + isolation.Machine}, env...),
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

// Of the integration tests these are what cgroups, systemd or the kernel's version can make fail. What is left out does the
// same on every host, and takes ten times as long here; so does most of it with the other driver.
const (
	limits   = "TestResources|TestOOM|TestUpdateEverything" // set, counted, changed
	ends     = "TestStopSignal|TestRestart|TestKillBoth"    // with and without a pidfd that knows how
	figures  = "TestContainerStats|TestPodStats|TestMetricsSayWhatTheKernelSays"
	labelled = "TestSELinux|TestUserNamespace"
)

// Of critest's specs these are about users, security modules, lack of memory and resources.
const (
	commonSpecs   = "UserNamespace|user namespace|OOM|oom|[Rr]esources"
	selinuxSpecs  = commonSpecs + "|SELinux"
	appArmorSpecs = commonSpecs + "|AppArmor"
)

// anyOf matches tests by their whole names.
func anyOf(names ...string) string { return "^(" + strings.Join(names, "|") + ")$" }

// plan is what `make test-vm` runs with a security module.
func plan(module string) []Step {
	const deadline = 15 * time.Minute // emulated, beside whatever else runs
	systemd, cgroupfs := "BERTH_CGROUP_DRIVER=systemd", "BERTH_CGROUP_DRIVER=cgroupfs"
	if module == "selinux" { // labels do not depend on the cgroup driver
		return []Step{
			testStep("labels", "internal/selinux", ".", deadline),
			testStep("labels/images", "internal/image", anyOf("TestLabelledMounts"), deadline),
			testStep("labels/pods", "test/integration", anyOf(labelled), deadline, systemd),
			testStep("core", "test/integration", anyOf(limits, ends), deadline, systemd),
			critestStep("critest/systemd", "runc,crun", selinuxSpecs, deadline, systemd),
		}
	}
	return []Step{
		testStep("cgroup", "internal/cgroup", ".", deadline),
		testStep("apparmor", "internal/apparmor", ".", deadline),
		serviceStep(deadline),
		testStep("core/systemd", "test/integration", anyOf(limits, ends, figures), deadline, systemd),
		testStep("core/cgroupfs", "test/integration", anyOf(limits), deadline, cgroupfs),
		critestStep("critest/systemd", "runc,crun", appArmorSpecs, deadline, systemd),
		critestStep("critest/cgroupfs", "runc,crun", appArmorSpecs, deadline, cgroupfs),
	}
}
