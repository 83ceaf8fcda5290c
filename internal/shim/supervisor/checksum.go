package supervisor

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/containerd/errdefs"
)

// A record ends with its checksum as the last member of its JSON object, so that a version without
// checksums reads it too, and a version that knows fewer members verifies it.
const (
	checksumBegin = `,"crc32c":"`
	checksumEnd   = `"}`
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// addChecksum adds a checksum to a JSON object with members.
func addChecksum(object []byte) []byte {
	content := bytes.TrimSuffix(object, []byte("}"))
	return fmt.Appendf(slices.Clip(content), "%s%08x%s", checksumBegin, crc32.Checksum(content, castagnoli), checksumEnd)
}

// verifyChecksum returns an error if the object has a checksum of another content.
func verifyChecksum(object []byte) error {
	end := len(object) - len(checksumEnd) - hex.EncodedLen(crc32.Size)
	content, found := bytes.CutSuffix(object[:max(0, end)], []byte(checksumBegin))
	if !found {
		return nil // of a version without checksums; a torn record is no JSON
	}
	if !bytes.Equal(addChecksum(content), object) {
		return fmt.Errorf("verify record: checksum %s does not match the content: %w", object[end:len(object)-len(checksumEnd)], errdefs.ErrInternal)
	}
	return nil
}
