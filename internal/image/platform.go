package image

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	cpuinfoFile = "/proc/cpuinfo"
	// referenceType is the annotation of an index entry that describes another one; its value is attestation.
	referenceType   = "vnd.docker.reference.type"
	attestation     = "attestation-manifest"
	unknownPlatform = "unknown"
	// maxShownPlatforms bounds the platforms of an index in an error.
	maxShownPlatforms = 16
)

// nodePlatform is the platform of this node, with what its CPU can do as the variant.
func nodePlatform() (ocispec.Platform, error) {
	node := platforms.DefaultSpec()
	cpuinfo, err := os.Open(cpuinfoFile)
	if err != nil {
		return node, err
	}
	defer cpuinfo.Close() //nolint:errcheck // it was read only
	features, err := cpuFeatures(cpuinfo)
	if err != nil {
		return node, fmt.Errorf("read %s: %w", cpuinfoFile, err)
	}
	if variant := cpuVariant(node.Architecture, features); variant != "" {
		node.Variant = variant
	}
	return node, nil
}

// cpuFeatures are the features that the kernel lists for the first CPU.
func cpuFeatures(cpuinfo io.Reader) ([]string, error) {
	lines := bufio.NewScanner(cpuinfo)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if key = strings.TrimSpace(key); key == "flags" || key == "Features" {
			return strings.Fields(value), nil
		}
	}
	return nil, lines.Err()
}

// amd64Levels are the features, as Linux names them, that each level of the x86-64 psABI adds, from v2 on.
var amd64Levels = [][]string{
	{"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
	{"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
	{"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}

// cpuVariant is the highest variant that a CPU with these features runs. It is empty where package platforms
// finds the variant.
func cpuVariant(architecture string, features []string) string {
	has := func(feature string) bool { return slices.Contains(features, feature) }
	all := func(level []string) bool { return !slices.ContainsFunc(level, func(f string) bool { return !has(f) }) }
	switch architecture {
	case "amd64":
		level := 1
		for _, added := range amd64Levels {
			if !all(added) {
				break
			}
			level++
		}
		return "v" + strconv.Itoa(level)
	case "arm64":
		if has("sve2") { // which no v8 CPU may have
			return "v9"
		}
	}
	return ""
}

// says tells whether a platform names an architecture at all.
func says(platform *ocispec.Platform) bool { return platform != nil && platform.Architecture != "" }

// candidates are the entries of an index that this node can pull, the preferred one first: those for the node's
// platform, in the order in which its CPU prefers their variants, and then those that do not say what they are
// for. Attestations are none.
func (s *Store) candidates(entries []ocispec.Descriptor) []ocispec.Descriptor {
	var matching, silent []ocispec.Descriptor
	for _, entry := range entries {
		switch {
		case entry.Annotations[referenceType] == attestation:
		case says(entry.Platform):
			if s.platform.Match(*entry.Platform) {
				matching = append(matching, entry)
			}
		case entry.Platform != nil && entry.Platform.OS != "" && !strings.EqualFold(entry.Platform.OS, "linux"):
		case images.IsIndexType(entry.MediaType) || images.IsManifestType(entry.MediaType):
			entry.Platform = nil
			silent = append(silent, entry)
		}
	}
	slices.SortStableFunc(matching, func(a, b ocispec.Descriptor) int {
		switch {
		case s.platform.Less(*a.Platform, *b.Platform):
			return -1
		case s.platform.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	slices.SortStableFunc(silent, func(a, b ocispec.Descriptor) int { // an artifact is the last choice
		return min(len(a.ArtifactType), 1) - min(len(b.ArtifactType), 1)
	})
	return append(matching, silent...)
}

// noCandidate is the error for an index without candidates. It names the platforms that the index has.
func (s *Store) noCandidate(entries []ocispec.Descriptor) error {
	var has []string
	for _, entry := range entries {
		if !says(entry.Platform) || entry.Platform.Architecture == unknownPlatform {
			continue
		}
		if name := fmt.Sprintf("%.64s", platforms.Format(*entry.Platform)); !slices.Contains(has, name) {
			has = append(has, name)
		}
	}
	if len(has) > maxShownPlatforms {
		has = append(has[:maxShownPlatforms], "…")
	}
	return fmt.Errorf("image has nothing for this node's platform %s, only for [%s]: %w",
		platforms.Format(s.node), strings.Join(has, ", "), errdefs.ErrNotFound)
}

// chosen is the manifest that a reference stands for on this node.
type chosen struct {
	desc     ocispec.Descriptor
	manifest ocispec.Manifest
	// matched says that an index names the node's platform for it; then its configuration need not.
	matched bool
}

// manifestOf reads the manifest that target stands for on this node. Of an index, it is the preferred one of
// those in the store: the preference changes with the CPU.
func (s *Store) manifestOf(ctx context.Context, target ocispec.Descriptor) (chosen, error) {
	c := chosen{desc: target}
	// An index may hold an index; one that held itself would need a hash collision.
	for images.IsIndexType(c.desc.MediaType) {
		entries, err := images.Children(ctx, s.gen.content, c.desc)
		if err != nil {
			return c, err
		}
		candidates := s.candidates(entries)
		if len(candidates) == 0 {
			return c, s.noCandidate(entries)
		}
		c.desc = candidates[0]
		for _, candidate := range candidates {
			if _, err := s.gen.content.Info(ctx, candidate.Digest); err == nil {
				c.desc = candidate
				break
			}
		}
		c.matched = c.matched || c.desc.Platform != nil
	}
	var err error
	c.manifest, err = images.Manifest(ctx, s.gen.content, c.desc, nil)
	return c, err
}

// foreign names the platform of an image that is for another one than the node's; otherwise it is empty. What
// an index says counts more than the configuration.
func (s *Store) foreign(c chosen, config ocispec.Platform) string {
	config.OSVersion, config.OSFeatures = "", nil
	if c.matched || config.Architecture == "" || s.platform.Match(config) {
		return ""
	}
	return platforms.Format(platforms.Normalize(config))
}
