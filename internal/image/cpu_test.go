package image

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	v2Flags = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
	v3Flags = v2Flags + " abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
	v4Flags = v3Flags + " avx512bw avx512cd avx512dq avx512f avx512vl"
)

// TestCPUVariants: /proc/cpuinfo of CPUs of each level gives the variants that these CPUs run, the best first.
func TestCPUVariants(t *testing.T) {
	for name, c := range map[string]struct{ architecture, cpuinfo, want string }{
		"v1":             {"amd64", "processor\t: 0\nflags\t\t: fpu sse sse2\n", "amd64 386"},
		"v2":             {"amd64", "flags\t\t: " + v2Flags + "\n", "amd64/v2 amd64 386"},
		"v3":             {"amd64", "flags\t\t: " + v3Flags + "\nflags\t: none\n", "amd64/v3 amd64/v2 amd64 386"},
		"v4":             {"amd64", "flags\t\t: " + v4Flags + "\n", "amd64/v4 amd64/v3 amd64/v2 amd64 386"},
		"v4 without v3":  {"amd64", "flags\t\t: " + strings.Replace(v4Flags, "abm", "", 1) + "\n", "amd64/v2 amd64 386"},
		"no flags":       {"amd64", "processor\t: 0\n", "amd64 386"},
		"arm64 v8":       {"arm64", "Features\t: fp asimd atomics\n", "arm64 arm/v8 arm/v7 arm/v6 arm/v5"},
		"arm64 v9":       {"arm64", "Features\t: fp asimd atomics sve sve2\n", "arm64/v9 arm64/v8.5 arm64/v8.1 arm64 arm/v8 arm/v7 arm/v6 arm/v5"},
		"other machines": {"s390x", "features\t: esan3 zarch\n", "s390x"},
	} {
		features, err := cpuFeatures(strings.NewReader(c.cpuinfo))
		if err != nil {
			t.Fatal(err)
		}
		s := &Store{platform: platforms.Only(ocispec.Platform{OS: "linux", Architecture: c.architecture, Variant: cpuVariant(c.architecture, features)})}
		var entries []ocispec.Descriptor
		for _, name := range []string{
			"386", "amd64", "amd64/v2", "amd64/v3", "amd64/v4", "amd64/v5", "arm/v5", "arm/v6", "arm/v7", "arm/v8", "arm64", "arm64/v8.1",
			"arm64/v8.5", "arm64/v9", "arm64/v9.7", "s390x", "riscv64",
		} {
			architecture, variant, _ := strings.Cut(name, "/")
			entries = append(entries, ocispec.Descriptor{Platform: &ocispec.Platform{OS: "linux", Architecture: architecture, Variant: variant}})
		}
		var got []string
		for _, entry := range s.candidates(entries) {
			got = append(got, strings.TrimPrefix(platforms.Format(*entry.Platform), "linux/"))
		}
		if !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s: got %q, want %s", name, got, c.want)
		}
	}
}
