package image_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/registry"
)

// BenchmarkPull pulls an image of eight gzip layers, a third of whose size is
// left by compression, into an empty store. It is the image that other
// runtimes were measured with, ten times smaller.
func BenchmarkPull(b *testing.B) {
	reg := registry.Run(b, registry.Options{})
	var spec imagefactory.Spec
	for i := range 8 {
		var files []imagefactory.File
		for j := range 120 {
			content := noise(32<<10+i*1000+j) + strings.Repeat("compressible ", 5<<10)
			files = append(files, imagefactory.Regular(fmt.Sprintf("dir-%d/file-%d", i, j), content))
		}
		spec.Layers = append(spec.Layers, imagefactory.Layer{Files: files})
	}
	a, err := imagefactory.Build(spec)
	if err != nil {
		b.Fatal(err)
	}
	ref := imagefactory.MustPush(b, reg.Host, "big:1", a)
	var packed int64
	for _, layer := range a.Layers {
		packed += layer.Size
	}
	b.SetBytes(packed)
	for b.Loop() {
		s, err := image.Open(b.Context(), image.Options{Root: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Pull(b.Context(), ref, image.Auth{}); err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkResolve is what the kubelet does for every container it starts.
func BenchmarkResolve(b *testing.B) {
	reg := registry.Run(b, registry.Options{})
	a, err := imagefactory.Build(hello())
	if err != nil {
		b.Fatal(err)
	}
	s, err := image.Open(b.Context(), image.Options{Root: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	ref := imagefactory.MustPush(b, reg.Host, "hello:1", a)
	if _, err := s.Pull(b.Context(), ref, image.Auth{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Resolve(ref); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRootfs makes, mounts, unmounts and removes a root filesystem.
func BenchmarkRootfs(b *testing.B) {
	reg := registry.Run(b, registry.Options{})
	a, err := imagefactory.Build(bigger(3))
	if err != nil {
		b.Fatal(err)
	}
	root := b.TempDir()
	s, err := image.Open(b.Context(), image.Options{Root: root, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	id, err := s.Pull(b.Context(), imagefactory.MustPush(b, reg.Host, "hello:1", a), image.Auth{})
	if err != nil {
		b.Fatal(err)
	}
	target := root + "/target"
	for b.Loop() {
		for _, err := range []error{
			s.PrepareRootfs(b.Context(), "key", id), s.MountRootfs(b.Context(), "key", target, false, nil),
			s.UnmountRootfs(b.Context(), target), s.RemoveRootfs(b.Context(), "key"),
		} {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}
