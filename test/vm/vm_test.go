package vm

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/berth-runtime/berth/test/cache"
	"github.com/berth-runtime/berth/test/command"
)

var (
	boots   = flag.String("boots", "", "security modules to boot with, one machine after another: apparmor, selinux")
	only    = flag.String("steps", "", "run only the steps of the plan whose names match")
	pkg     = flag.String("package", "", "run tests of this package instead of the plan, e.g. ./internal/spec")
	pattern = flag.String("tests", "", "with -package: the tests to run")
	passes  = flag.String("passes", "", "run critest instead of the plan, with passes as test/conformance knows them")
	focus   = flag.String("focus", "", "with -passes: the specs to run")
	driver  = flag.String("driver", "", "with -package and -passes: the cgroup driver to use")
	shell   = flag.String("command", "", "run a shell command instead of the plan")
)

// bootDeadline bounds a machine beyond the deadlines of its steps.
const bootDeadline = 3 * time.Minute

// modules are the kernel arguments for each security module.
var modules = map[string][]string{
	"apparmor": {"apparmor=1", "security=apparmor"},
	"selinux":  {"selinux=1", "security=selinux", "enforcing=1"},
}

// TestMachine runs the plan, or what flags ask for, in a virtual machine for each security module that -boots names.
func TestMachine(t *testing.T) {
	if *boots == "" {
		t.Log("-boots names no machine, so there is nothing to do")
		return
	}
	c, err := cache.Open("vm")
	if err != nil {
		t.Fatal(err)
	}
	r, err := makeRoot(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for module := range strings.SplitSeq(*boots, ",") {
		words, ok := modules[module]
		if !ok {
			t.Fatalf("-boots: %q is no security module; want apparmor or selinux", module)
		}
		t.Run(module, func(t *testing.T) { boot(t, r, words, chosen(t, module)) })
	}
}

// chosen is what runs in the machine.
func chosen(t *testing.T, module string) []Step {
	const deadline = time.Hour
	var env []string
	if *driver != "" {
		env = append(env, "BERTH_CGROUP_DRIVER="+*driver)
	}
	switch {
	case *shell != "":
		return []Step{{Name: "command", Argv: []string{"/bin/sh", "-c", *shell}, Dir: Mountpoint, Deadline: deadline, Env: []string{"BERTH_BIN=" + binDir}}}
	case *pkg != "":
		return []Step{testStep(*pkg, filepath.Clean(*pkg), *pattern, deadline, env...)}
	case *passes != "":
		return []Step{critestStep("critest", *passes, *focus, deadline, env...)}
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	var steps []Step
	for _, s := range plan(module) {
		if match.MatchString(s.Name) {
			steps = append(steps, s)
		}
	}
	return steps
}

// boot runs steps in one machine, each as a subtest.
func boot(t *testing.T, r root, words []string, steps []Step) {
	if len(steps) == 0 {
		t.Fatal("there is no such step")
	}
	dir, err := os.MkdirTemp("/tmp", "bvm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	p := payload{tree: "../..", disk: filepath.Join(dir, "payload.ext4"), steps: steps}
	if err := p.make(t.Context()); err != nil {
		t.Fatal(err)
	}
	deadline := bootDeadline
	for _, s := range steps {
		deadline += s.Deadline
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	m := machine{root: r, payload: p.disk, kernel: words, dir: dir}
	begun := time.Now()
	heard := &record{t: t, outputs: map[string]*strings.Builder{}, ends: map[string]*End{}}
	if err := m.run(ctx, heard.hear); err != nil {
		t.Errorf("%v; the emulator says:\n%s", err, tail(filepath.Join(dir, "qemu.log")))
	}
	t.Logf("the machine was up for %v", time.Since(begun).Round(time.Second))
	for _, s := range steps {
		t.Run(s.Name, func(t *testing.T) { heard.judge(t, s.Name) })
	}
	if t.Failed() {
		t.Logf("the machine's console ends:\n%s", tail(m.console()))
	}
}

// record is what the guest has said.
type record struct {
	t       *testing.T
	outputs map[string]*strings.Builder
	ends    map[string]*End
}

// hear notes an event. Events that a flag selects is shown at once.
func (r *record) hear(e Event) {
	if r.outputs[e.Step] == nil {
		r.outputs[e.Step] = &strings.Builder{}
	}
	r.outputs[e.Step].WriteString(e.Output)
	if *shell != "" || *pkg != "" || *passes != "" {
		fmt.Print(e.Output)
	}
	if e.End != nil {
		r.ends[e.Step] = e.End
		r.t.Logf("%s: %v %s", e.Step, e.End.Took.Round(time.Second), e.End.Problem)
	}
}

var results = regexp.MustCompile(`(?m)^\s*--- (PASS|FAIL|SKIP): `)

// judge fails t if the step did not succeed, or if one of its tests was skipped.
func (r *record) judge(t *testing.T, step string) {
	out := r.outputs[step]
	if out == nil {
		t.Fatal("the machine did not come to it")
	}
	counts := map[string]int{}
	for _, m := range results.FindAllStringSubmatch(out.String(), -1) {
		counts[m[1]]++
	}
	t.Logf("%d tests passed, %d failed, %d skipped", counts["PASS"], counts["FAIL"], counts["SKIP"])
	end := r.ends[step]
	switch {
	case end == nil:
		t.Errorf("the machine ended before the step did; it said:\n%s", out)
	case end.Problem != "":
		t.Errorf("%s; it said:\n%s", end.Problem, out)
	case counts["SKIP"] > 0:
		t.Errorf("tests were skipped; it said:\n%s", out)
	}
}

func tail(file string) string {
	const lines = 60
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return command.Tail(string(data), lines)
}
