package shim_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-runtime/berth/internal/shim"
)

// TestKilledBeforeItServes: a supervisor that is killed while it starts does not keep the daemon from starting.
func TestKilledBeforeItServes(t *testing.T) {
	h := newHost(t)
	first := h.client.PID()
	h.disconnect()
	h.eventually("the supervisor without containers leaves", func() bool {
		reapAdopted()
		return !alive(first)
	})
	opts := h.options()
	opts.Binary = filepath.Join(h.state, "berth-shim")
	script := fmt.Sprintf("#!/bin/sh\nmkdir %s/tried && kill -9 $$\nexec %s \"$@\"\n", h.state, binary)
	h.must(os.WriteFile(opts.Binary, []byte(script), 0o700))
	client, err := shim.Connect(h.ctx(), opts)
	if err != nil {
		h.connect() // so that the supervisor can be ended
		t.Fatalf("connect: %v", err)
	}
	h.client = client
}

// runClient is what the test binary does as a client to be killed: it connects and waits.
func runClient(state string) {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	_, err := shim.Connect(ctx, shim.Options{State: state, Binary: os.Getenv("BERTH_SHIM_BINARY"), Instance: os.Getenv("BERTH_SHIM_INSTANCE")})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("connected")
	select {}
}
