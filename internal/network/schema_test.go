package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// TestGoldenLease reads a lease as version 0.1.0 wrote it, and writes it back.
func TestGoldenLease(t *testing.T) {
	golden, err := os.ReadFile("testdata/lease.v1.json")
	must(t, err)
	held, err := parseLease(golden)
	must(t, err)
	if held.Network != Builtin || len(held.Addresses) != 2 || held.Addresses[0] != netip.MustParsePrefix("10.88.0.7/16") || !held.Published ||
		len(held.Ports) != 2 || held.Ports[1].Address != netip.MustParseAddr("192.0.2.2") || held.Bandwidth.Egress != 2000000 {
		t.Errorf("lease is %+v", held)
	}
	again, err := json.Marshal(held)
	must(t, err)
	if !bytes.Equal(again, bytes.TrimSpace(golden)) {
		t.Errorf("lease is written back as %s, want %s", again, golden)
	}
}

// TestNewerLeaseIsLeftUntouched: the leases of a newer version are refused, and its file stays as it is.
func TestNewerLeaseIsLeftUntouched(t *testing.T) {
	golden, err := os.ReadFile("testdata/lease.v1.json")
	must(t, err)
	newer := bytes.Replace(golden, []byte(`"version":1`), []byte(`"version":2`), 1)
	dir := t.TempDir()
	file := filepath.Join(dir, "4f5a6c.json")
	must(t, os.WriteFile(file, newer, 0o600))
	if _, err := openLeaseStore(dir, slog.New(slog.NewTextHandler(t.Output(), nil))); !errors.Is(err, errNewer) {
		t.Errorf("open leases of a newer version: %v, want %v", err, errNewer)
	}
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, newer) {
		t.Errorf("the newer lease is %q (%v) now", now, err)
	}
}
