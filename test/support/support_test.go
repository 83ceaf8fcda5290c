// Package support checks docs/cri-support.md, which says of every call and every field of the CRI whether Berth supports it,
// since when, which test shows it, and if not, why. The page is made from support.txt and the CRI's own description.
package support

import (
	"flag"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/refusals"
)

//go:generate go test -run ^TestPage$ -update .

var update = flag.Bool("update", false, "write the page as it should be")

const (
	listFile = "support.txt"
	pageFile = "../../docs/cri-support.md"
	// calls is how many the CRI has; another number is another CRI.
	calls = 43
)

// page reads the list and makes the page of it.
func page(t *testing.T) (*list, string) {
	t.Helper()
	text, err := os.ReadFile(listFile)
	if err != nil {
		t.Fatal(err)
	}
	l, err := parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	api := describe(runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto)
	if len(api.calls) != calls {
		t.Errorf("the CRI has %d calls, want %d: look for what is new", len(api.calls), calls)
	}
	made, problems := l.render(api)
	for _, p := range problems {
		t.Error(p)
	}
	list, others, err := refusals.All()
	if err != nil {
		t.Fatal(err)
	}
	return l, made + refusals.Render(list, others)
}

// TestPage: the page is what the list and the CRI make of it. A call or a field without a line fails, and so does a line
// without a call or field.
func TestPage(t *testing.T) {
	_, want := page(t)
	if t.Failed() {
		return
	}
	have, err := os.ReadFile(pageFile)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if string(have) == want {
		return
	}
	if !*update {
		t.Fatalf("%s is not what %s says; run: make generate", pageFile, listFile)
	}
	if err := os.WriteFile(pageFile, []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
}

var testFunction = regexp.MustCompile(`(?m)^func ((?:Test|Benchmark)\w+)\(`)

// existingTests returns the names of all tests and benchmarks of the tree.
func existingTests(t *testing.T) map[string]bool {
	t.Helper()
	out, err := exec.Command("git", "ls-files", "-co", "--exclude-standard", "../../*_test.go").Output()
	if err != nil {
		t.Fatalf("list the tests: %v", err)
	}
	exists := map[string]bool{}
	for file := range strings.Lines(string(out)) {
		source, err := os.ReadFile(strings.TrimSpace(file))
		if os.IsNotExist(err) {
			continue // removed, and not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range testFunction.FindAllStringSubmatch(string(source), -1) {
			exists[m[1]] = true
		}
	}
	return exists
}

// TestNamedTestsExist: a test that is renamed or removed takes its evidence with it.
func TestNamedTestsExist(t *testing.T) {
	l, _ := page(t)
	exists := existingTests(t)
	for _, r := range l.rules {
		for _, name := range r.tests {
			if !exists[name] {
				t.Errorf("%s:%d: there is no test %s", listFile, r.line, name)
			}
		}
	}
}

var quotedTest = regexp.MustCompile("`(Test\\w+)`")

// TestThreatModelNamesTests checks that each row of the threat model's boundaries names a test, and
// that each named test exists.
func TestThreatModelNamesTests(t *testing.T) {
	const file = "../../docs/threat-model.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, boundaries, found := strings.Cut(string(text), "\n## Boundaries and tests\n")
	if !found {
		t.Fatalf("%s has no section of boundaries", file)
	}
	boundaries, _, _ = strings.Cut(boundaries, "\n## ")
	exists := existingTests(t)
	for row := range strings.Lines(boundaries) {
		if !strings.HasPrefix(row, "|") || strings.HasPrefix(row, "|---") || strings.HasPrefix(row, "| threat |") {
			continue
		}
		names := quotedTest.FindAllStringSubmatch(row, -1)
		if len(names) == 0 {
			t.Errorf("%s: this row names no test: %s", file, row)
		}
		for _, name := range names {
			if !exists[name[1]] {
				t.Errorf("%s: test %s does not exist", file, name[1])
			}
		}
	}
}

// TestListIsUnderstood: an error in a list is reported with its line.
func TestListIsUnderstood(t *testing.T) {
	for text, want := range map[string]string{
		"A.b | maybe | TestX":       `line 1: "maybe"`,
		"A.b | yes":                 "line 1: yes needs a test",
		"A.b | no":                  "line 1: no needs a reason",
		"A.b | yes | TestX | a | b": "line 1: want",
		"A.[ | no | | why":          "line 1: A.[",
		"A.b | yes | x":             `line 1: "x" is no name of a test`,
	} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", text, err, want)
		}
	}
	l, err := parse("# words\nfirst version 0.1.0\nA.b* | no | | why\nA.bc | partly since 0.2.0 | TestX, TestY | not all\n")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"A.bd": "no", "A.bc": "partly"} {
		if r := l.find(name); r == nil || r.answer != want {
			t.Errorf("%s: %+v, want %s", name, r, want)
		}
	}
	if r := l.find("A.bc"); r.since != "0.2.0" || !slices.Equal(r.tests, []string{"TestX", "TestY"}) || l.find("B.x") != nil {
		t.Errorf("the rules are %+v", l.rules)
	}
}

// TestProblemsAreTold: what has no line, and a line that is about nothing.
func TestProblemsAreTold(t *testing.T) {
	l, err := parse("first version 0.1.0\nVersion | yes | TestPage\nNothing.* | no | | why\n")
	if err != nil {
		t.Fatal(err)
	}
	api := describe(runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto)
	_, problems := l.render(api)
	text := strings.Join(problems, "\n")
	for _, want := range []string{"VersionRequest.version has no line", "line 3: Nothing.* is about nothing"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not reported", want)
		}
	}
	if !slices.ContainsFunc(api.messages, func(m protoreflect.MessageDescriptor) bool { return m.Name() == "LinuxContainerResources" }) {
		t.Error("a message within a message is not found")
	}
}
