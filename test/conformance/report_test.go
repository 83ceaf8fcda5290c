package conformance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sample is a report of Ginkgo with one spec of each kind, cut down to what is read.
const sample = `[{
	"SuiteDescription": "CRI validation", "RunTime": 65000000000, "SpecialSuiteFailureReasons": %s,
	"SpecReports": [
		{"LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["[k8s.io] Container", "basic"], "LeafNodeText": "should start", "State": "passed", "RunTime": 1500000000},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["[k8s.io] Container"], "LeafNodeText": "should stop", "State": "failed",
		 "CapturedGinkgoWriterOutput": "said this", "Failure": {"Message": "it did not"}},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": null, "LeafNodeText": "should hang", "State": "timedout", "Failure": {"Message": "too long"}},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["[k8s.io] AppArmor"], "LeafNodeText": "should deny", "State": "skipped",
		 "Failure": {"Message": "AppArmor is disabled on this host"}},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["benchmark"], "LeafNodeText": "pods", "State": "skipped"},
		{"LeafNodeType": "AfterSuite", "LeafNodeText": "", "State": "panicked", "Failure": {"Message": "oh"}}
	]
}]`

func TestReport(t *testing.T) {
	r, err := parseReport([]byte(strings.Replace(sample, "%s", "null", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if r.took != 65*time.Second || r.problem() != "" {
		t.Errorf("the pass took %v with problem %q", r.took, r.problem())
	}
	for o, want := range map[outcome][]string{
		passed:  {"[k8s.io] Container basic should start: "},
		failed:  {"AfterSuite: panicked: oh", "[k8s.io] Container should stop: failed: it did not", "should hang: timedout: too long"},
		skipped: {"[k8s.io] AppArmor should deny: AppArmor is disabled on this host"},
		left:    {"benchmark pods: "},
	} {
		var got []string
		for _, s := range r.with(o) {
			got = append(got, s.name+": "+s.message)
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s: got %q, want %q", o, got, want)
		}
	}
}

// A pass may fail without any spec that does.
func TestReportOfTrouble(t *testing.T) {
	r, err := parseReport([]byte(strings.Replace(sample, "%s", `["interrupted", "late"]`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.problem(), "interrupted; late"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, bad := range []string{"", "[]", `[{"SpecReports": []}]`, `[{}, {}]`} {
		if _, err := parseReport([]byte(bad)); err == nil {
			t.Errorf("%q passes for a report", bad)
		}
	}
}

// Only what is listed is excused, and only where it is true.
func TestExcuses(t *testing.T) {
	if _, err := excused(spec{message: "no time"}); err == nil {
		t.Error("any reason is an excuse")
	}
	for _, e := range excuses {
		if e.why == "" {
			t.Errorf("%q is excused without saying why", e.message)
		}
	}
	file := filepath.Join(t.TempDir(), "enabled")
	for content, want := range map[string]bool{"": true, "N\n": true, "Y\n": false} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := kernelLacks(file); err != nil || got != want {
			t.Errorf("%q: got %t, %v", content, got, err)
		}
	}
	if lacks, err := kernelLacks(file + "-not"); err != nil || !lacks {
		t.Errorf("no file: got %t, %v", lacks, err)
	}
}

func TestParsePass(t *testing.T) {
	for words, want := range map[string]pass{
		"runc":                 {handler: "runc", processes: 1},
		"crun:2:cni":           {handler: "crun", processes: 2, cni: true},
		"crun:websocket":       {handler: "crun", processes: 1, websocket: true},
		"runc:websocket:3:cni": {handler: "runc", processes: 3, websocket: true, cni: true},
	} {
		if got, err := parsePass(words); err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", words, got, err, want)
		}
	}
	for _, bad := range []string{"runc:0", "runc:-1", "runc:spdy"} {
		if got, err := parsePass(bad); err == nil {
			t.Errorf("%s: got %+v", bad, got)
		}
	}
}

func TestConfigure(t *testing.T) {
	const before = "# a comment\nCONFIG_TC=y\n# CONFIG_STATIC is not set\nCONFIG_STATIC_LIBGCC=y\nCONFIG_NAME=\"x\"\n"
	const want = "# a comment\n# CONFIG_TC is not set\nCONFIG_STATIC=y\nCONFIG_STATIC_LIBGCC=y\nCONFIG_NAME=\"x\"\n"
	if got := configure(before, busyboxConfig); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestReplaceDigest(t *testing.T) {
	const line = `	testLinuxImageWithDigest        = registry + "test-image-digest@%s"`
	old, wanted := "sha256:"+strings.Repeat("1", 64), "sha256:"+strings.Repeat("2", 64)
	got, err := replaceDigest([]byte(strings.Replace(line, "%s", old, 1)), wanted)
	if want := strings.Replace(line, "%s", wanted, 1); err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if _, err := replaceDigest([]byte("nothing"), wanted); err == nil {
		t.Error("a constant that is not there is replaced")
	}
}
