package network

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/google/nftables"
)

// The choice of the network follows the configuration directory, also when it is removed and made again, or its parents are.
func TestConfigurationComesAndGoes(t *testing.T) {
	r := newRig(t, func(o *Options) { o.ConfDir = filepath.Join(filepath.Dir(o.Root), "etc", "cni", "net.d") })
	pod := r.pod("a")
	dir := r.options.ConfDir
	write := func(name, content string) {
		t.Helper()
		must(t, os.MkdirAll(dir, 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	expectNetwork := func(name string) {
		t.Helper()
		eventually(t, "network "+name, func() bool {
			conf := r.cni.loaded() // what the watch has seen
			return conf.list == nil && name == "" || conf.list != nil && conf.list.Name == name
		})
		plan, err := r.Plan(pod)
		must(t, err)
		if want := name; want == "" && plan.Kind != Builtin || want != "" && plan.Network != want {
			t.Errorf("plan %+v, want network %q", plan, want)
		}
	}
	expectNetwork("")
	write("20-b.conflist", strings.Replace(seedList, "mynet", "b", 1))
	expectNetwork("b")
	write("10-a.conflist", strings.Replace(seedList, "mynet", "a", 1))
	expectNetwork("a")
	write("10-a.conflist", strings.Replace(seedList, "mynet", "changed", 1))
	expectNetwork("changed")
	must(t, os.RemoveAll(dir))
	expectNetwork("")
	write("10-a.conflist", strings.Replace(seedList, "mynet", "back", 1))
	expectNetwork("back")
	must(t, os.Rename(dir, dir+".old"))
	expectNetwork("")
	must(t, os.Rename(dir+".old", dir))
	expectNetwork("back")
	must(t, os.RemoveAll(filepath.Join(r.dir, "etc")))
	expectNetwork("")
	write("10-a.conflist", strings.Replace(seedList, "mynet", "again", 1))
	expectNetwork("again")
}

// Plan reads the directory itself: a file that was written before the call counts, seen by the watch or not.
func TestPlanSeesWhatIsThere(t *testing.T) {
	r := newRig(t, nil)
	pod := r.pod("a")
	must(t, os.MkdirAll(r.options.ConfDir, 0o755))
	must(t, os.WriteFile(filepath.Join(r.options.ConfDir, "10.conflist"), []byte(seedList), 0o600))
	if plan, err := r.Plan(pod); err != nil || plan.Network != "mynet" {
		t.Errorf("plan %+v, %v", plan, err)
	}
}

// Without a watch (the host is out of inotify instances, say) Ready looks for itself.
func TestReadyWithoutWatch(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Builtin = BuiltinNever })
	r.mu.Lock()
	r.watched = false
	r.mu.Unlock()
	if err := r.Ready(); err == nil {
		t.Error("ready without a configuration")
	}
	must(t, os.MkdirAll(r.options.ConfDir, 0o755))
	must(t, os.WriteFile(filepath.Join(r.options.ConfDir, "10.conflist"), []byte(seedList), 0o600))
	if err := r.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
}

// Files that are unusable are passed over; if all are, the node is not ready and the reason names the file.
func TestUnusableConfiguration(t *testing.T) {
	for name, content := range map[string]string{
		"NotJSON": "{", "NoName": `{"cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}`, "NoPlugins": `{"cniVersion":"1.0.0","name":"x","plugins":[]}`,
		"NoType": `{"cniVersion":"1.0.0","name":"x","plugins":[{}]}`, "Newer": `{"cniVersion":"9.0.0","name":"x","plugins":[{"type":"bridge"}]}`,
		"NullPlugin": `{"cniVersion":"1.0.0","name":"x","plugins":[null]}`, "BadVersion": `{"cniVersion":"x","name":"x","plugins":[{"type":"bridge"}]}`,
		"BadName": `{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"bridge"}]}`, "Empty": "",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(o *Options) {
				must(t, os.MkdirAll(o.ConfDir, 0o755))
				must(t, os.WriteFile(filepath.Join(o.ConfDir, "10-x.conflist"), []byte(content), 0o600))
				must(t, os.WriteFile(filepath.Join(o.ConfDir, "README.txt"), []byte("not counted"), 0o600))
			})
			for what, err := range map[string]error{"Ready": r.Ready(), "Plan": second(r.Plan(r.pod("a")))} {
				if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "10-x.conflist") {
					t.Errorf("%s = %v", what, err)
				}
			}
			must(t, os.WriteFile(filepath.Join(r.options.ConfDir, "20-good.conflist"), []byte(seedList), 0o600))
			if plan, err := r.Plan(r.pod("b")); err != nil || plan.Network != "mynet" {
				t.Errorf("plan %+v, %v", plan, err)
			}
		})
	}
}

func TestBuiltinModes(t *testing.T) {
	t.Run("Never", func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Builtin = BuiltinNever })
		for what, err := range map[string]error{"Ready": r.Ready(), "Plan": second(r.Plan(r.pod("a")))} {
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), r.options.ConfDir) {
				t.Errorf("%s = %v", what, err)
			}
		}
	})
	t.Run("Always", func(t *testing.T) {
		r := withList(t, seedList, func(o *Options) { o.Builtin = BuiltinAlways })
		if plan, err := r.Plan(r.pod("a")); err != nil || plan.Kind != Builtin {
			t.Errorf("plan %+v, %v", plan, err)
		}
		if err := r.Ready(); err != nil {
			t.Errorf("Ready: %v", err)
		}
	})
}

// Plugins of CNI 1.1 may be in files of their own, beside the list; the plan has them all.
func TestPluginsFromFiles(t *testing.T) {
	r := newRig(t, func(o *Options) {
		must(t, os.MkdirAll(filepath.Join(o.ConfDir, "mynet"), 0o755))
		must(t, os.WriteFile(filepath.Join(o.ConfDir, "10-mynet.conflist"), []byte(`{"cniVersion":"1.1.0","name":"mynet","plugins":[{"type":"bridge"}]}`), 0o600))
		must(t, os.WriteFile(filepath.Join(o.ConfDir, "mynet", "50-more.conf"), []byte(`{"type":"tuning"}`), 0o600))
	})
	plan, err := r.Plan(r.pod("a"))
	must(t, err)
	list, err := libcni.NetworkConfFromBytes(plan.Config)
	must(t, err)
	if names := pluginTypes(list); len(names) != 2 || names[1] != "tuning" {
		t.Errorf("plugins %v", names)
	}
	must(t, os.WriteFile(filepath.Join(r.options.ConfDir, "mynet", "60-more.conf"), []byte(`{"type":"sbr"}`), 0o600))
	eventually(t, "third plugin", func() bool { return len(pluginTypes(r.cni.loaded().list)) == 3 })
}

func FuzzConflist(f *testing.F) {
	for _, seed := range []string{
		seedList, bridgeList("1.1.0", portmap), `{"type":"bridge","name":"x"}`, `{"plugins":[null]}`, `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"a","ipam":{"type":"b"}}]}`,
		`{"cniVersions":["1.0.0","2.0.0"],"name":"x","plugins":[{"type":"a","capabilities":{"portMappings":true}}]}`, `null`, `[]`, `{"name":"x","disableCheck":"true"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := parseConflist(raw)
		if err != nil || len(list.Plugins) == 0 {
			return
		}
		complete, err := completeConflist(list)
		if err != nil {
			t.Fatalf("accepted, but cannot be written: %v", err)
		}
		again, err := libcni.NetworkConfFromBytes(complete)
		if err != nil {
			t.Fatalf("a plan of it cannot be read: %v\n%s", err, complete)
		}
		if again.Name != list.Name || again.CNIVersion != list.CNIVersion || len(again.Plugins) != len(list.Plugins) {
			t.Fatalf("got %+v, want %+v", again, list)
		}
		claims(again, capabilityPorts)
		masquerades(again)
	})
}

func FuzzLease(f *testing.F) {
	whole, err := json.Marshal(lease{Version: leaseVersion, ID: "a", Network: Builtin, Published: true,
		Addresses: subnets{loopback4, loopback6}.at(0), Ports: []port{{Protocol: TCP, Host: 1, Container: 2}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(whole), string(whole[:len(whole)-1]), `{}`, `null`, `{"version":1,"id":"../x"}`,
		`{"version":1,"id":"a","addresses":["::ffff:1.2.3.4/100"]}`, `{"version":1,"id":"a","ports":[{"protocol":"tcp","host":1,"container":1,"address":"fe80::1%x"}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		held, err := parseLease(raw)
		if err != nil {
			return
		}
		l := &leaseStore{dir: "/d", leases: map[string]*lease{}, owners: nil}
		if filepath.Dir(l.path(held.ID)) != "/d" {
			t.Fatalf("ID %q leads out of the directory", held.ID)
		}
		for _, address := range held.Addresses {
			offsetOf(address)
		}
		held.Published = true
		sets := newPortSets(nil)
		if err := sets.each(held, func(*nftables.Set, []nftables.SetElement) error { return nil }); err != nil {
			t.Fatal(err)
		}
	})
}
