package cli

import (
	"errors"
	"strings"
	"testing"
)

func TestExplain(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for _, tc := range []struct{ in, want string }{
		{"plain", "plain"},
		{"list: context deadline exceeded while waiting for connections to become ready", "list: the runtime does not answer"},
		{"list: rpc error: code = Unknown desc = broken: rpc error: code = Internal desc = deep", "list: broken: deep"},
		{"start container " + id + ": start container " + id + ": crun: no", "start container 0123456789ab: crun: no"},
		{"image sha256:" + id + " is gone", "image sha256:" + id + " is gone"},
		{"(sandbox " + id + ") x", "(sandbox 0123456789ab) x"},
		{"working_dir \"a\": must be absolute: invalid argument", "working_dir \"a\": must be absolute"},
		{"sysctl: no: invalid argument (pod default/a)", "sysctl: no (pod default/a)"},
		{"resolve: a:1: not found", "resolve: a:1: not found"},
	} {
		if got := explain(errors.New(tc.in)); got != tc.want {
			t.Errorf("explain(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

// What shells call 126 and 127, in the words of runc and crun.
func TestCommandError(t *testing.T) {
	for _, tc := range []struct {
		text string
		want int
	}{
		{`runc run failed: unable to start container process: exec: "nocmd": executable file not found in $PATH`, exitNotFound},
		{"crun run: executable file `nocmd` not found in $PATH: No such file or directory", exitNotFound},
		{`exec: "/no/such": stat /no/such: no such file or directory`, exitNotFound},
		{`exec: "/etc/passwd": permission denied`, exitCannot},
		{"crun run: open executable: Permission denied", exitCannot},
		{"crun run: open executable: Operation not permitted", exitCannot},
		{`exec: "/etc": is a directory`, exitCannot},
		{`start container 1: runtime handler "mine": find program: exec: "mine": executable file not found in $PATH`, 0},
		{"mount /proc: operation not permitted", 0},
		{"open /var/log/x: permission denied", 0},
	} {
		got := 0
		if own, ok := errors.AsType[*codeError](commandError(errors.New(tc.text))); ok {
			got = own.code
		}
		if got != tc.want {
			t.Errorf("%q gives code %d, want %d", tc.text, got, tc.want)
		}
	}
}
