package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// helperTimeout is how long a credential helper may run.
	helperTimeout = 10 * time.Second
	// helperDrain is how long its output may stay open after that.
	helperDrain = time.Second
	// maxHelperOutput bounds what it may print.
	maxHelperOutput = 64 << 10
	// helperPrefix is what names of credential helpers begin with, as for Docker.
	helperPrefix = "docker-credential-"
	// helperNoAccount is printed by helpers that have no account for a host.
	helperNoAccount = "credentials not found"
	// helperTokenUser is the user name that stands for an identity token.
	helperTokenUser = "<token>"
)

var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// askHelper runs a credential helper of Docker for a host. It gets the host on its standard input and
// prints the account as JSON.
func askHelper(ctx context.Context, name, host string) (account, error) {
	if !helperName.MatchString(name) {
		return account{}, fmt.Errorf("credential helper %q: the name has other characters than letters, digits and ._-: %w",
			name, errdefs.ErrFailedPrecondition)
	}
	if host == "docker.io" {
		host = "https://index.docker.io/v1/"
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, helperPrefix+name, "get")
	output := &boundedOutput{limit: maxHelperOutput}
	cmd.Stdin, cmd.Stdout = strings.NewReader(host), output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = helperDrain
	err := cmd.Run()
	switch text := string(output.kept); {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return account{}, fmt.Errorf("credential helper %s did not answer for %s: %w", helperPrefix+name, helperTimeout, errdefs.ErrUnavailable)
	case output.full:
		return account{}, fmt.Errorf("credential helper %s printed more than %d bytes: %w", helperPrefix+name, maxHelperOutput, errdefs.ErrFailedPrecondition)
	case err != nil && strings.Contains(text, helperNoAccount):
		return account{}, nil
	case err != nil:
		// What it printed may hold the account.
		return account{}, fmt.Errorf("credential helper %s: %w: %w", helperPrefix+name, err, errdefs.ErrFailedPrecondition)
	}
	var answer struct{ Username, Secret string }
	if json.Unmarshal(output.kept, &answer) != nil {
		return account{}, fmt.Errorf("credential helper %s printed no JSON: %w", helperPrefix+name, errdefs.ErrFailedPrecondition)
	}
	if answer.Username == helperTokenUser {
		answer.Username = ""
	}
	return account{user: answer.Username, secret: answer.Secret}, nil
}

// boundedOutput keeps the beginning of an output.
type boundedOutput struct {
	kept  []byte
	limit int
	full  bool
}

// Write drops what exceeds the limit.
func (b *boundedOutput) Write(p []byte) (int, error) {
	room := b.limit - len(b.kept)
	if len(p) > room {
		b.full = true
	}
	b.kept = append(b.kept, p[:min(len(p), room)]...)
	return len(p), nil
}
