package shim_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestUpgradeKeepsDroppedReaders: a client whose view of the output was cut, because it did not read, is refused a clean end of
// the view by the supervisor's successor, too.
func TestUpgradeKeepsDroppedReaders(t *testing.T) {
	h := newHost(t)
	req := h.bundle(h.handler("runc"), "c", "while ! test -e /begin; do sleep 0.02; done; yes 0123456789 | head -c 6400000; echo end; sleep 1000")
	h.start(req)
	a, err := h.client.Attach(h.ctx(), "c", false)
	h.must(err)
	h.must(os.WriteFile(filepath.Join(req.Bundle, "rootfs/begin"), nil, 0o600))
	h.eventually("everything is in the log", func() bool { return strings.HasSuffix(h.log("c")["stdout"], "end\n") })
	h.must(h.client.Upgrade(h.ctx(), binary))
	if err := a.Close(); !errdefs.IsResourceExhausted(err) {
		t.Errorf("the end of the view: got %v, want ErrResourceExhausted", err)
	}
}
