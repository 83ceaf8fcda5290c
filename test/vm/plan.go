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

// plan is what `make test-vm` runs with a security module.
func plan(module string) []Step {
	const deadline = 10 * time.Minute
	var steps []Step
	if module == "apparmor" {
		steps = append(steps, testStep("cgroup", "internal/cgroup", ".", deadline))
	}
	return steps
}
