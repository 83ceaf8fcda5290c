package config

import (
	"reflect"
	"strings"
	"testing"
)

// The documented default must be a file that changes nothing, or it lies.
func TestDocumentIsTheDefault(t *testing.T) {
	got, err := Parse("default.toml", []byte(Document()))
	if err != nil {
		t.Fatalf("the documented default is refused: %v", err)
	}
	if want := Default(); !reflect.DeepEqual(got, want) {
		t.Errorf("documented default reads as\n%+v, want\n%+v", got, want)
	}
}

// Every field of Config must be in the settings table exactly once, under the
// name of its tag, or it could be set in a file but never validated, shown or
// documented (or the other way round).
func TestSettingsCoverTheStruct(t *testing.T) {
	c := Default()
	inTable := map[string]bool{}
	for _, s := range c.allSections() {
		if strings.HasPrefix(s.name, handlersTable+".") && s.name != handlersTable+".crun" {
			continue
		}
		name := strings.Replace(s.name, handlersTable+".crun", handlersTable+".NAME", 1)
		for _, set := range s.settings {
			key := joinKey(name, set.key)
			if inTable[key] {
				t.Errorf("%s is in the settings table twice", key)
			}
			inTable[key] = true
		}
	}
	inStruct := map[string]bool{}
	fieldKeys(reflect.TypeFor[Config](), "", inStruct)
	for key := range inStruct {
		if !inTable[key] {
			t.Errorf("%s is a field of Config without a setting", key)
		}
	}
	for key := range inTable {
		if !inStruct[key] {
			t.Errorf("%s is a setting without a field in Config", key)
		}
	}
}

func fieldKeys(typ reflect.Type, prefix string, into map[string]bool) {
	for f := range typ.Fields() {
		key := joinKey(prefix, f.Tag.Get("toml"))
		switch {
		case f.Type.Kind() == reflect.Struct:
			fieldKeys(f.Type, key, into)
		case f.Type == reflect.TypeFor[map[string]Handler]():
			fieldKeys(f.Type.Elem(), key+".NAME", into)
		default:
			into[key] = true
		}
	}
}

func TestCloneSharesNothing(t *testing.T) {
	c := Default()
	c.Network.BuiltinSubnet = []string{"10.1.0.0/16"}
	clone := c.Clone()
	clone.Image.Pinned = append(clone.Image.Pinned, "x")
	clone.Network.CNIBinDirs[0] = "/changed"
	clone.Network.BuiltinSubnet[0] = "changed"
	clone.Runtime.Handlers["crun"].Options["changed"] = "yes"
	clone.Runtime.Handlers["new"] = Handler{}
	want := Default()
	want.Network.BuiltinSubnet = []string{"10.1.0.0/16"}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("changing a clone changed the original:\n%+v", c)
	}
}

func TestTOMLReadsBack(t *testing.T) {
	c := Default()
	c.Log.Level = "debug"
	c.Image.Pinned = []string{"registry.example/a:1", "b"}
	c.Runtime.Handlers["odd.name"] = Handler{
		Type: HandlerOCI, Path: "/opt/a \"b\"\\c\t\u00e9/runc", Root: "/r\u007f",
		Options: map[string]string{"debug": "true"}, Annotations: []string{"a.*", "b"}, SandboxContainer: "never",
	}
	got, err := Parse("x.toml", []byte(c.TOML()))
	if err != nil {
		t.Fatalf("read back: %v\n%s", err, c.TOML())
	}
	if !reflect.DeepEqual(got, c) {
		t.Errorf("read back\n%+v, want\n%+v", got, c)
	}
}
