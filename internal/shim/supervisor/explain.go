package supervisor

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/text"
)

// maxExplanation bounds what an error quotes of the stderr of an OCI runtime.
const maxExplanation = 2 << 10

// explain completes the refusal of an OCI runtime that wrote nothing into its log. It has the container's stderr, and as
// the container never ran, what is there is the runtime's.
func (o *stdio) explain(err error) error {
	var refused *ociruntime.CommandError
	if !errors.As(err, &refused) || refused.Message != "" {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	raw, rawErr := o.stderr.SyscallConn()
	if rawErr != nil {
		return errors.Join(err, rawErr)
	}
	said := make([]byte, maxExplanation)
	n := 0
	readErr := raw.Read(func(fd uintptr) bool {
		n, _ = unix.Read(int(fd), said) // it does not wait; what cannot be read is no explanation
		return true
	})
	if n > 0 {
		refused.Message = text.Clean(strings.TrimSpace(string(said[:n])))
	}
	return errors.Join(err, readErr)
}
