package image

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// readBuffer is what is read from a registry at a time.
	readBuffer = 256 << 10
	// maxWindow bounds the memory that one zstd layer can make us use. It is
	// what zstd itself accepts without --long.
	maxWindow = 128 << 20
)

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	// skippable frames may come first in a zstd stream: 0x184D2A5? in little
	// endian.
	skippableMagic = []byte{0x2a, 0x4d, 0x18}
)

// decompress recognises a layer's compression by its first bytes: media types
// are known to lie.
func decompress(from io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(from, readBuffer)
	magic, err := buffered.Peek(len(zstdMagic))
	if err != nil && len(magic) == 0 && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		r, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, fmt.Errorf("read gzip header: %w", err)
		}
		return r, nil
	case bytes.Equal(magic, zstdMagic),
		len(magic) == len(zstdMagic) && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], skippableMagic):
		// One goroutine less per layer: layers are decompressed side by side.
		r, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("read zstd header: %w", err)
		}
		return r.IOReadCloser(), nil
	default:
		return io.NopCloser(buffered), nil
	}
}
