package pod

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod/store"
)

// FuzzRecord reads damaged and foreign records: nothing panics, an error is one of damage, and what is read without an
// error is written and read back as the same.
func FuzzRecord(f *testing.F) {
	var seed sandboxRecord
	seed.ID = "0123"
	seed.Config.M = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"}}
	whole, err := store.Encode(&seed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add(bytes.Replace(whole, []byte("0123"), []byte("0124"), 1))
	f.Add([]byte(`{"schema":1,"crc32c":"00000000","record":null}`))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		var first, second sandboxRecord
		if err := store.Decode(data, &first); err != nil {
			return
		}
		again, err := store.Encode(&first)
		if err != nil {
			t.Fatalf("write what was read: %v", err)
		}
		if err := store.Decode(again, &second); err != nil {
			t.Fatalf("read what was written: %v", err)
		}
		if first.ID != second.ID || !proto.Equal(first.Config.M, second.Config.M) {
			t.Errorf("record is %+v, and %+v when read back", first, second)
		}
	})
}

// TestDamagedRecords: a record that was changed or torn anywhere is distinguished from a whole one.
func TestDamagedRecords(t *testing.T) {
	record := sandboxRecord{ID: "0123"}
	record.Config.M = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "name"}}
	whole, err := store.Encode(&record)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(bytes.TrimSpace(whole)) {
		if store.Decode(whole[:n], &sandboxRecord{}) == nil {
			t.Errorf("the first %d of %d bytes are taken for a record", n, len(whole))
		}
	}
	changed := bytes.Replace(whole, []byte("name"), []byte("game"), 2)
	if !bytes.Equal(changed, whole) && bytes.Contains(changed, []byte(`"game"`)) && store.Decode(changed, &sandboxRecord{}) == nil {
		t.Error("a changed record is taken for the one that was written")
	}
}
