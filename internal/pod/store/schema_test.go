package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestSchemas reads records of other schemas: a newer one is left as it is, one that never was is damaged.
func TestSchemas(t *testing.T) {
	whole, err := Encode(map[string]string{"id": "0123"})
	if err != nil {
		t.Fatal(err)
	}
	for schema, want := range map[string]error{"1": nil, "2": ErrNewer, "9999": ErrNewer, "0": ErrDamaged, "-1": ErrDamaged} {
		file := filepath.Join(t.TempDir(), "record.json")
		text := bytes.Replace(whole, []byte(`"schema":1`), []byte(`"schema":`+schema), 1)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		var got map[string]string
		if err := New("").Read(file, &got); !errors.Is(err, want) || err == nil && got["id"] != "0123" {
			t.Errorf("schema %s: record %v, error %v, want %v", schema, got, err, want)
		}
		if left, err := os.ReadFile(file); err != nil || !bytes.Equal(left, text) {
			t.Errorf("schema %s: the file is %q, %v", schema, left, err)
		}
	}
}
