package checkpoint

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
)

var errFull = errors.New("disk is full")

// make fills a directory with a checkpoint.
func sample(t *testing.T) Dir {
	t.Helper()
	d := Dir(filepath.Join(t.TempDir(), "work"))
	for _, err := range []error{
		d.Make(),
		d.WriteContainer(Container{
			ID: "id", Name: "app", Image: "busybox:1", ImageName: "busybox:1", ImageID: "sha256:1", Runtime: "runc",
			CreatedAt: time.Unix(1, 0).UTC(), At: time.Unix(2, 0).UTC(),
		}, []byte(`{"ociVersion":"1.0.2","process":{"cwd":"/","args":["sh"]},"annotations":{"io.kubernetes.cri.container-name":"app"}}`)),
		d.WriteChanges(func(w io.Writer) ([]string, error) {
			_, err := w.Write(tarOf(t, &tar.Header{Name: "changed", Typeflag: tar.TypeReg}))
			return []string{"/gone"}, err
		}),
		os.WriteFile(filepath.Join(d.Images(), "pages-1.img"), bytes.Repeat([]byte("p"), 1<<20), 0o600),
		os.WriteFile(filepath.Join(d.Images(), "inventory.img"), []byte("i"), 0o600),
		os.WriteFile(filepath.Join(string(d), "dump.log"), []byte("(00.1) ok\n"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// TestRoundTrip: what is packed is what is read, and what others read of it.
func TestRoundTrip(t *testing.T) {
	d := sample(t)
	to := filepath.Join(t.TempDir(), "c.tar")
	if err := d.Pack(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	a, err := Open(to)
	if err != nil {
		t.Fatal(err)
	}
	if a.Container.Name != "app" || a.Container.ImageID != "sha256:1" || !a.Container.At.Equal(time.Unix(2, 0)) ||
		a.Spec.Process.Args[0] != "sh" || !slices.Equal(a.Removed, []string{"/gone"}) {
		t.Errorf("got %+v", a)
	}
	var changes []byte
	if err := a.Changes(func(r io.Reader) (err error) {
		changes, err = io.ReadAll(r)
		return err
	}); err != nil || !bytes.Equal(changes, tarOf(t, &tar.Header{Name: "changed", Typeflag: tar.TypeReg})) {
		t.Errorf("changes: got %q, %v", changes, err)
	}
	if err := a.Shm(func(io.Reader) error { return errFull }); err != nil {
		t.Errorf("shared memory, of which there is none: %v", err)
	}
	images := t.TempDir()
	if err := a.Images(images); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(images, "pages-1.img")); err != nil || info.Size() != 1<<20 {
		t.Errorf("pages: got %v, %v", info, err)
	}

	// The library of checkpointctl reads it.
	out := t.TempDir()
	unpackTop(t, to, out)
	config, _, err := metadata.ReadContainerCheckpointConfigDump(out)
	if err != nil || config.OCIRuntime != "runc" || config.RootfsImageRef != "sha256:1" {
		t.Errorf("config.dump: got %+v, %v", config, err)
	}
	spec, _, err := metadata.ReadContainerCheckpointSpecDump(out)
	if err != nil || spec.Annotations["io.kubernetes.cri.container-name"] != "app" {
		t.Errorf("spec.dump: got %+v, %v", spec, err)
	}
	if files, _, err := metadata.ReadContainerCheckpointDeletedFiles(out); err != nil || !slices.Equal(files, []string{"/gone"}) {
		t.Errorf("deleted.files: got %v, %v", files, err)
	}
}

// unpackTop unpacks what is at the top of an archive, and checks how it begins.
func unpackTop(t *testing.T, archive, to string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var names []string
	in := tar.NewReader(f)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
		if header.Typeflag != tar.TypeReg || strings.Contains(header.Name, "/") {
			continue
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, header.Name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := "config.dump spec.dump deleted.files checkpoint/ checkpoint/inventory.img checkpoint/pages-1.img dump.log rootfs-diff.tar"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("the archive holds %s, want %s", got, want)
	}
}

// TestPackFails: of an archive that cannot be completed nothing is left, and one
// that was there before stays.
func TestPackFails(t *testing.T) {
	d := sample(t)
	dir := t.TempDir()
	to := filepath.Join(dir, "c.tar")
	if err := os.WriteFile(to, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(d.Images(), "link")); err != nil {
		t.Fatal(err)
	}
	if err := d.Pack(t.Context(), to); err == nil {
		t.Error("a link was packed")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if text, err := os.ReadFile(to); err != nil || string(text) != "before" {
		t.Errorf("what was there: got %q, %v", text, err)
	}
	if err := d.WriteChanges(func(io.Writer) ([]string, error) { return nil, nil }); err == nil {
		t.Error("the changes were written twice")
	}
	if err := Dir(t.TempDir()).WriteShm(func(io.Writer) error { return errFull }); !errors.Is(err, errFull) {
		t.Errorf("got %v, want what failed", err)
	}
}

// TestHostile: archives of others lead nowhere but into the directory, and what
// is none is refused.
func TestHostile(t *testing.T) {
	dir := t.TempDir()
	images := filepath.Join(dir, "images")
	if err := os.Mkdir(images, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "hostile.tar")
	var text bytes.Buffer
	out := tar.NewWriter(&text)
	for _, h := range []tar.Header{
		{Name: "config.dump", Size: 2}, {Name: "spec.dump", Size: 2},
		{Name: "checkpoint/../../escaped", Size: 2}, {Name: "checkpoint/sub/escaped", Size: 2}, {Name: "/checkpoint/escaped", Size: 2},
		{Name: "checkpoint/link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, {Name: "checkpoint/good.img", Size: 2},
	} {
		h.Mode = 0o600
		if err := out.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := out.Write([]byte("{}")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(out.Close(), os.WriteFile(file, text.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	a, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Images(images); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(images); err != nil || len(entries) != 1 || entries[0].Name() != "good.img" {
		t.Errorf("unpacked %v, %v", entries, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("beside: %v, %v", entries, err)
	}
	for name, content := range map[string]string{"empty": "", "noise": strings.Repeat("noise", 1000)} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(file); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v, want an invalid argument", name, err)
		}
	}
	if _, err := Open(dir); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a directory: got %v, want an invalid argument", err)
	}
}

// TestPod: the checkpoint of a pod tells its containers.
func TestPod(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := OpenPod(dir); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an empty directory: got %v, want an invalid argument", err)
	}
	if err := sample(t).Pack(t.Context(), ArchiveOf(dir, "id")); err != nil {
		t.Fatal(err)
	}
	want := Pod{ID: "pod", Name: "web", Namespace: "default", UID: "u", Containers: map[string]string{"app": "id"}, Runtime: "runc", Version: "1"}
	if err := WritePod(dir, want); err != nil {
		t.Fatal(err)
	}
	pod, archives, err := OpenPod(dir)
	if err != nil || pod.Name != "web" || archives["app"].Container.Name != "app" {
		t.Errorf("got %+v, %v, %v", pod, archives, err)
	}
	want.Containers = map[string]string{"other": "id"}
	if err := WritePod(dir, want); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenPod(dir); !errdefs.IsInvalidArgument(err) {
		t.Errorf("another name: got %v, want an invalid argument", err)
	}
	want.Containers = map[string]string{"app": "../../etc/passwd"}
	if err := WritePod(dir, want); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenPod(dir); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a path for an ID: got %v, want an invalid argument", err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte("config.dump"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "a.tar")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if a, err := Open(file); err == nil {
			if err := a.Images(t.TempDir()); err != nil {
				t.Log(err)
			}
		} else if !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v, want an invalid argument", err)
		}
	})
}
