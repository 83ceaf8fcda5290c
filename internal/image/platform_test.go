package image_test

import (
	"bytes"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

func platform(architecture, variant string) *ocispec.Platform {
	return &ocispec.Platform{OS: "linux", Architecture: architecture, Variant: variant}
}

// entry is an index entry whose image has a file that says which one it is. The configuration names configured, or
// nothing.
func entry(t *testing.T, is string, of, configured *ocispec.Platform) imagefactory.Entry {
	t.Helper()
	spec := imagefactory.Spec{NoPlatform: configured == nil, Layers: []imagefactory.Layer{{Files: []imagefactory.File{imagefactory.Regular("is", is)}}}}
	if configured != nil {
		spec.Platform = *configured
	}
	return imagefactory.Entry{Artifact: build(t, spec), Platform: of}
}

func indexOf(t *testing.T, entries ...imagefactory.Entry) *imagefactory.Artifact {
	t.Helper()
	a, err := imagefactory.IndexOf(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestPlatformOfIndex pulls indexes from a registry: an entry for this node is taken whatever the configuration of its
// image says, one without a platform only if there is no other; attestations and entries for other platforms never are.
func TestPlatformOfIndex(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	here, other := platform(runtime.GOARCH, ""), platform("s390x", "")
	synonym := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	if synonym == "" {
		t.Fatalf("no other name of the architecture %s is known", runtime.GOARCH)
	}
	upper := &ocispec.Platform{OS: "Linux", Architecture: strings.ToUpper(synonym)}
	attestation := entry(t, "attestation", nil, nil)
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	unknown := &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	nested := imagefactory.Entry{Artifact: indexOf(t, entry(t, "nested other", other, other), entry(t, "nested", here, nil)), Platform: here}
	nestedSilent := nested
	nestedSilent.Platform = nil
	for name, c := range map[string]struct {
		entries []imagefactory.Entry
		want    string
		foreign string
	}{
		"empty configuration":       {[]imagefactory.Entry{entry(t, "here", here, nil)}, "here", ""},
		"wrong configuration":       {[]imagefactory.Entry{entry(t, "here", here, other)}, "here", ""},
		"upper case configuration":  {[]imagefactory.Entry{entry(t, "here", here, upper)}, "here", ""},
		"synonym":                   {[]imagefactory.Entry{entry(t, "other", other, nil), entry(t, "here", platform(synonym, ""), nil)}, "here", ""},
		"upper case":                {[]imagefactory.Entry{entry(t, "other", other, nil), entry(t, "here", upper, nil)}, "here", ""},
		"only one, silent":          {[]imagefactory.Entry{entry(t, "silent", nil, nil)}, "silent", ""},
		"only one, silent, foreign": {[]imagefactory.Entry{entry(t, "silent", nil, other)}, "silent", "linux/s390x"},
		"empty platform":            {[]imagefactory.Entry{entry(t, "silent", &ocispec.Platform{}, here)}, "silent", ""},
		"silent first":              {[]imagefactory.Entry{entry(t, "silent", nil, nil), entry(t, "here", here, nil)}, "here", ""},
		"silent and other":          {[]imagefactory.Entry{entry(t, "other", other, nil), entry(t, "silent", nil, nil)}, "silent", ""},
		"attestations":              {[]imagefactory.Entry{attestation, entry(t, "unknown", unknown, nil), entry(t, "here", here, nil)}, "here", ""},
		"attestation and silent":    {[]imagefactory.Entry{attestation, entry(t, "silent", nil, nil)}, "silent", ""},
		"nested":                    {[]imagefactory.Entry{entry(t, "other", other, nil), nested}, "nested", ""},
		"nested silent":             {[]imagefactory.Entry{nestedSilent}, "nested", ""},
		"two alike":                 {[]imagefactory.Entry{entry(t, "first", here, nil), entry(t, "second", here, nil)}, "first", ""},
		"other operating systems": {[]imagefactory.Entry{
			entry(t, "windows", &ocispec.Platform{OS: "windows", Architecture: runtime.GOARCH, OSVersion: "10.0.17763.1"}, nil),
			entry(t, "freebsd", &ocispec.Platform{OS: "freebsd"}, nil), entry(t, "here", here, nil),
		}, "here", ""},
	} {
		t.Run(name, func(t *testing.T) {
			repository := strings.NewReplacer(" ", "-", ",", "").Replace(name) + ":1"
			imagefactory.MustPush(t, f.reg.Host, repository, indexOf(t, c.entries...))
			id := f.pull(f.proxy.Host + "/" + repository)
			if got := f.content(id); got != "/is -rw-r--r-- "+c.want {
				t.Errorf("content: got %s, want %s", got, c.want)
			}
			if got := f.resolve(id).Foreign; got != c.foreign {
				t.Errorf("foreign platform: got %q, want %q", got, c.foreign)
			}
		})
	}
	imagefactory.MustPush(t, f.reg.Host, "none:1", indexOf(t, entry(t, "other", other, nil), attestation, entry(t, "unknown", unknown, nil)))
	_, err := f.Pull(t.Context(), f.proxy.Host+"/none:1", image.Auth{})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "this node") || !strings.Contains(err.Error(), "[linux/s390x]") {
		t.Errorf("an index without an entry for this node: got %v, want not found and the platforms", err)
	}
}

// content mounts an image as a volume for the moment.
func (f *fixture) content(id string) string {
	f.t.Helper()
	target := f.volume("content", id)
	defer f.dropVolume("content", target)
	return tree(f.t, target)
}

// TestPlatformVariants: of an index with a variant for each level, the pull takes the highest that the CPU of this
// machine has. The levels are compared with what the kernel lists.
func TestPlatformVariants(t *testing.T) {
	privilege.Root(t)
	if runtime.GOARCH != "amd64" {
		t.Fatalf("the levels of %s are not known to this test", runtime.GOARCH)
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	_, flags, _ := strings.Cut(string(cpuinfo), "\nflags")
	flags, _, _ = strings.Cut(flags, "\n")
	can := "v1"
	for _, level := range []struct{ variant, needs string }{
		{"v2", "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"}, {"v3", "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"},
		{"v4", "avx512bw avx512cd avx512dq avx512f avx512vl"},
	} {
		if !subset(strings.Fields(level.needs), strings.Fields(flags)) {
			break
		}
		can = level.variant
	}
	f := newFixture(t)
	var entries []imagefactory.Entry
	for _, variant := range []string{"v1", "v3", "v4", "v2", "v5"} {
		entries = append(entries, entry(t, variant, platform("amd64", variant), nil))
	}
	imagefactory.MustPush(t, f.reg.Host, "levels:1", indexOf(t, entries...))
	if got := f.content(f.pull(f.proxy.Host + "/levels:1")); got != "/is -rw-r--r-- "+can {
		t.Errorf("got %s, want the level %s of this CPU", got, can)
	}
	imagefactory.MustPush(t, f.reg.Host, "beyond:1", indexOf(t, entries[4]))
	if _, err := f.Pull(t.Context(), f.proxy.Host+"/beyond:1", image.Auth{}); !errdefs.IsNotFound(err) {
		t.Errorf("a level that no CPU has: got %v, want not found", err)
	}
}

func subset(part, whole []string) bool {
	return !slices.ContainsFunc(part, func(p string) bool { return !slices.Contains(whole, p) })
}

// TestForeignImage: a single image of another platform is pulled, with a line in the log, and says so after a restart
// too. The same image through an index that names this node's platform for it is not foreign.
func TestForeignImage(t *testing.T) {
	privilege.Root(t)
	logged := &syncBuffer{}
	f := newFixtureWith(t, image.Options{Log: slog.New(slog.NewTextHandler(logged, nil))}, registry.Options{})
	foreign := entry(t, "foreign", platform(runtime.GOARCH, ""), platform("s390x", ""))
	imagefactory.MustPush(t, f.reg.Host, "foreign:1", foreign.Artifact)
	id := f.pull(f.proxy.Host + "/foreign:1")
	if !strings.Contains(logged.String(), "image of another platform pulled") || !strings.Contains(logged.String(), "linux/s390x") {
		t.Errorf("the log does not name the platform:\n%s", logged)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f.Store = open(t, image.Options{Root: f.root})
	if got := f.resolve(id).Foreign; got != "linux/s390x" {
		t.Errorf("foreign platform after a restart: got %q", got)
	}
	imagefactory.MustPush(t, f.reg.Host, "asserted:1", indexOf(t, foreign))
	if got := f.resolve(f.pull(f.proxy.Host + "/asserted:1")).Foreign; got != "" {
		t.Errorf("an index names this node's platform for the image: got %q", got)
	}
	for name, configured := range map[string]*ocispec.Platform{"silent": nil, "synonym": {OS: "LINUX", Architecture: "X86_64"}} {
		imagefactory.MustPush(t, f.reg.Host, name+":1", entry(t, name, nil, configured).Artifact)
		if got := f.resolve(f.pull(f.proxy.Host + "/" + name + ":1")).Foreign; got != "" {
			t.Errorf("%s: foreign platform %q", name, got)
		}
	}
}

// syncBuffer is a buffer that a logger may write to from several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
