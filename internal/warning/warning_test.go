package warning

import (
	"fmt"
	"strings"
	"testing"
)

// TestListIsBounded: a list has each warning once, a bounded number of them, and says that others are left out.
func TestListIsBounded(t *testing.T) {
	var l List
	for range 2 {
		for i := range 10 * maxList {
			l.Add(fmt.Sprintf("mounts[%d].host_path", i), i, "was created")
		}
	}
	if len(l) != maxList {
		t.Fatalf("%d warnings, want %d", len(l), maxList)
	}
	if last := l[maxList-1]; last.Field != "warnings" || !strings.Contains(last.Reason, "left out") {
		t.Errorf("the last warning is %+v", last)
	}
	var few List
	if added := few.Append(New("a", "", "b"), New("a", "", "b"), New("a", "", "c")); len(added) != 2 || len(few) != 2 {
		t.Errorf("added %v, the list is %v", added, few)
	}
}

// TestTextsAreCleaned: texts of requests are cut and cannot break a log line.
func TestTextsAreCleaned(t *testing.T) {
	w := New("f", strings.Repeat("x", 1<<20), "a\nb\x1b\xffc")
	if len(w.Value) > maxText+len("…") || w.Reason != "a b \uFFFDc" {
		t.Errorf("value of %d bytes, reason %q", len(w.Value), w.Reason)
	}
}

// TestLabel: requests cannot make new labels of the metric.
func TestLabel(t *testing.T) {
	for field, want := range map[string]string{
		"mounts[3].propagation":                 "mounts.propagation",
		"linux.sysctls.net.evil":                "linux.sysctls",
		"linux.resources.unified.evil.max":      "linux.resources.unified",
		"annotations[kubernetes.io/x.y]":        "annotations",
		"linux.security_context.seccomp":        "linux.security_context.seccomp",
		"linux.resources.hugepage_limits[12].x": "linux.resources.hugepage_limits.x",
	} {
		if got := New(field, "", "").Label(); got != want {
			t.Errorf("%s: label %q, want %q", field, got, want)
		}
	}
}
