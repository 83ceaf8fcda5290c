package image_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/privilege"
)

// A pull by tag gives exactly that tag, the digest it stood for and, as ID,
// the digest of the configuration; every alias resolves to the same image.
func TestPullByTag(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, a := f.push("library/hello:1", hello())
	id := f.pull(ref)
	if id != a.ID {
		t.Errorf("id: got %s, want the digest of the configuration %s", id, a.ID)
	}
	got := f.resolve(ref)
	byDigest := f.proxy.Host + "/library/hello@" + a.Descriptor.Digest.String()
	if !slices.Equal(got.Tags, []string{ref}) || !slices.Equal(got.Digests, []string{byDigest}) {
		t.Errorf("names: got %v and %v, want %s and %s", got.Tags, got.Digests, ref, byDigest)
	}
	if got.Size == 0 || got.Config.Cmd[0] != "/hello" || got.UID != nil || got.Username != "" {
		t.Errorf("image: got %+v", got)
	}
	for _, alias := range []string{id, strings.TrimPrefix(id, "sha256:"), id[:19], id[7:19], "sha256:" + id[7:10], byDigest,
		f.proxy.Host + "/library/hello:1@" + a.Descriptor.Digest.String()} {
		if found := f.resolve(alias); found != got {
			t.Errorf("resolve %s: got %v, want the image", alias, found)
		}
	}
	if list := f.List(); len(list) != 1 || list[0] != got {
		t.Errorf("list: got %v, want the image", list)
	}
	if target := f.mounted(id); tree(t, target) != "/hello -rw-r--r-- world" {
		t.Errorf("content: got\n%s", tree(t, target))
	}
}

// Pulling what is there asks what the tag stands for and fetches nothing.
func TestPullAgain(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("hello:1", hello())
	first := f.pull(ref)
	fetched := f.proxy.Count("GET", "/v2/")
	if second := f.pull(ref); second != first {
		t.Errorf("got %s, want %s", second, first)
	}
	if now := f.proxy.Count("GET", "/v2/"); now != fetched {
		t.Errorf("the second pull fetched %d times", now-fetched)
	}
}

// A pull by digest gives no tag.
func TestPullByDigest(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	_, a := f.push("hello:1", hello())
	ref := f.proxy.Host + "/hello@" + a.Descriptor.Digest.String()
	f.pull(ref)
	got := f.resolve(ref)
	if len(got.Tags) != 0 || !slices.Equal(got.Digests, []string{ref}) {
		t.Errorf("names: got %v and %v, want none and %s", got.Tags, got.Digests, ref)
	}
}

// A reference without a tag means latest, whatever asks for it.
func TestPullUntagged(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	f.push("hello:latest", hello())
	f.pull(f.proxy.Host + "/hello")
	if got := f.resolve(f.proxy.Host + "/hello:latest"); got.Tags[0] != f.proxy.Host+"/hello:latest" {
		t.Errorf("tag: got %s", got.Tags[0])
	}
}

// What cannot be a reference, and what is not there, are distinguished.
func TestResolveErrors(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("hello:1", hello())
	id := f.pull(ref)
	for ref, want := range map[string]error{
		"":                                  errdefs.ErrInvalidArgument,
		"UPPER":                             errdefs.ErrInvalidArgument,
		"a b":                               errdefs.ErrInvalidArgument,
		"x:y:z":                             errdefs.ErrInvalidArgument,
		strings.Repeat("a", 2000):           errdefs.ErrInvalidArgument,
		"absent":                            errdefs.ErrNotFound,
		"absent:1":                          errdefs.ErrNotFound,
		"sha256:" + strings.Repeat("0", 64): errdefs.ErrNotFound,
		strings.Repeat("0", 64):             errdefs.ErrNotFound,
		// A name that happens to look like the beginning of an ID is a name.
		id[7:13]:                errdefs.ErrNotFound,
		f.proxy.Host + "/hello": errdefs.ErrNotFound,
	} {
		if _, err := f.Resolve(ref); !errors.Is(err, want) {
			t.Errorf("resolve %.60q: got %v, want %v", ref, err, want)
		}
	}
	if _, err := f.Pull(t.Context(), "Not A Reference", image.Auth{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("pull of a malformed reference: got %v", err)
	}
}

// One image in two repositories has one ID and both names, and removing it by
// any of its aliases removes all of them.
func TestOneImageTwoRegistries(t *testing.T) {
	privilege.Root(t)
	for name, alias := range map[string]func(id, tag string) string{
		"by-id":  func(id, _ string) string { return id },
		"by-tag": func(_, tag string) string { return tag },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			first, a := f.push("one/hello:1", hello())
			second, _ := f.push("two/hello:2", hello())
			direct := f.reg.Host + "/two/hello:2"
			if one, two, three := f.pull(first), f.pull(second), f.pull(direct); one != a.ID || two != one || three != one {
				t.Fatalf("ids: got %s, %s and %s, want %s", one, two, three, a.ID)
			}
			if got := f.resolve(a.ID); len(got.Tags) != 3 || len(got.Digests) != 3 {
				t.Errorf("names: got %v and %v, want three and three", got.Tags, got.Digests)
			}
			if err := f.Remove(t.Context(), alias(a.ID, second)); err != nil {
				t.Fatal(err)
			}
			for _, ref := range []string{first, second, direct, a.ID} {
				if _, err := f.Resolve(ref); !errdefs.IsNotFound(err) {
					t.Errorf("resolve %s after removal: got %v, want not found", ref, err)
				}
			}
			if err := f.GC(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.nothingLeft()
		})
	}
}

// A tag that moved leaves the old image under its digest only.
func TestMovedTag(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("hello:1", hello())
	old := f.pull(ref)
	changed := hello()
	changed.Config.Cmd = []string{"/other"}
	f.push("hello:1", changed)
	renewed := f.pull(ref)
	if renewed == old {
		t.Fatal("the second pull gave the first image")
	}
	if got := f.resolve(old); len(got.Tags) != 0 || len(got.Digests) != 1 {
		t.Errorf("old image: got tags %v and digests %v, want none and one", got.Tags, got.Digests)
	}
	if got := f.resolve(ref); got.ID != renewed {
		t.Errorf("resolve %s: got %s, want %s", ref, got.ID, renewed)
	}
}

// Images with the same configuration, packed with different compressions, are
// one image; each keeps its own blobs, and every layer is there once.
func TestCompressions(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	refs, id := []string{}, ""
	for name, compression := range map[string]imagefactory.Compression{
		"gzip": imagefactory.Gzip, "zstd": imagefactory.Zstd, "plain": imagefactory.Uncompressed,
	} {
		spec := hello()
		spec.Layers[0].Compression = compression
		ref, _ := f.push("hello:"+name, spec)
		refs, id = append(refs, ref), f.pull(ref)
	}
	if got := f.resolve(id); len(got.Tags) != len(refs) {
		t.Errorf("tags: got %v, want %v", got.Tags, refs)
	}
	blobs := 0
	for _, path := range leftovers(t, f.root) {
		if strings.Contains(path, "/blobs/") {
			blobs++
		}
	}
	if blobs != 7 {
		t.Errorf("blobs: got %d, want one configuration, three manifests and three layers", blobs)
	}
	if content := tree(t, f.mounted(id)); content != "/hello -rw-r--r-- world" {
		t.Errorf("content: got %s", content)
	}
}

// Of a multi-platform index only this node's image is fetched; the digest that
// is reported is the index's, the ID that of the image's configuration.
func TestIndex(t *testing.T) {
	privilege.Root(t)
	for name, docker := range map[string]bool{"oci": false, "docker": true} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			spec := hello()
			spec.Docker = docker
			a := build(t, spec)
			index, err := imagefactory.WithDecoys(a)
			if err != nil {
				t.Fatal(err)
			}
			imagefactory.MustPush(t, f.reg.Host, "multi:1", index)
			id := f.pull(f.proxy.Host + "/multi:1")
			got := f.resolve(id)
			if id != a.ID || !strings.HasSuffix(got.Digests[0], index.Descriptor.Digest.String()) {
				t.Errorf("got %s with digests %v, want %s and %s", id, got.Digests, a.ID, index.Descriptor.Digest)
			}
			if n := f.proxy.Count("GET", "/blobs/"); n != 2 {
				t.Errorf("blobs fetched: got %d, want configuration and layer", n)
			}
		})
	}
}
