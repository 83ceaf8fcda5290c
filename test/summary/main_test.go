package main

import (
	"strings"
	"testing"
)

// TestSummary: what go test shows is shown, and skipped tests with their reasons at the end.
func TestSummary(t *testing.T) {
	events := `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: got 1, want 2\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- FAIL: TestA (0.01s)\n"}
{"Action":"fail","Package":"p","Test":"TestA","Elapsed":0.01}
{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN   TestB\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    privilege.go:31: needs root: run make test\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestB","Elapsed":0}
{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:9: no history: tag v1 is missing\n"}
{"Action":"skip","Package":"p","Test":"TestC","Elapsed":0}
{"Action":"output","Package":"p","Test":"TestD","Output":"    d_test.go:9: quiet\n"}
{"Action":"pass","Package":"p","Test":"TestD","Elapsed":0}
{"Action":"output","Package":"p","Test":"TestE","Output":"panic: here\n"}
{"Action":"output","Package":"p","Output":"FAIL\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p","Elapsed":1.5}
not an event
{"Action":"output","Package":"q","Output":"PASS\n"}
{"Action":"output","Package":"q","Output":"ok  \tq\t0.2s\n"}
{"Action":"pass","Package":"q","Elapsed":0.2}
`
	var out strings.Builder
	if err := newSummary(&out).read(strings.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	want := `=== RUN   TestA
    a_test.go:3: got 1, want 2
--- FAIL: TestA (0.01s)
panic: here
FAIL
FAIL	p	0.1s
not an event
ok  	q	0.2s
slowest packages:
     1.5 s  p
     0.2 s  q
skipped: 2 tests, 1 of them because they need root (run make test as root)
  p TestC: no history: tag v1 is missing
`
	if got := out.String(); got != want {
		t.Errorf("summary is\n%s\nwant\n%s", got, want)
	}
}
