package network

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The host of these tests can run the built-in network, so the probes must say so, and leave its table alone.
func TestProbes(t *testing.T) {
	if err := ProbeLinks(); err != nil {
		t.Errorf("ProbeLinks: %v", err)
	}
	if err := ProbeFirewall(); err != nil {
		t.Errorf("ProbeFirewall: %v", err)
	}
	f := &firewall{table: plainName, leases: &leaseStore{}}
	there, err := f.exists()
	if err != nil || there {
		t.Errorf("after the probe, table %s exists: %v (%v)", plainName, there, err)
	}
	if err := f.close(); err != nil {
		t.Error(err)
	}
}

func TestChoose(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	options := Options{ConfDir: dir, BinDirs: []string{bin}, Builtin: BuiltinAuto}
	if got, err := Choose(options); err != nil || got.Kind != Builtin {
		t.Errorf("without a configuration: %+v (%v)", got, err)
	}
	options.Builtin = BuiltinNever
	if got, err := Choose(options); err == nil {
		t.Errorf("without a configuration and a built-in network: %+v", got)
	}
	file := filepath.Join(dir, "10-net.conflist")
	text := `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap"}]}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "bridge"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := Choose(options)
	if err != nil || got.Kind != CNI || got.Name != "net" || got.File != file || !slices.Equal(got.Missing, []string{"host-local", "portmap"}) {
		t.Errorf("with plugins missing: %+v (%v)", got, err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Choose(options); err == nil {
		t.Errorf("with a broken file: %+v", got)
	}
}
