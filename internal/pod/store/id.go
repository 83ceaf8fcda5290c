package store

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
)

// IDLength is the length of the IDs of sandboxes and containers, in characters.
const IDLength = 64

// NewID returns an ID of random lower-case hexadecimal characters.
func NewID() string {
	var b [IDLength / 2]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// ValidID tells whether id has the form of NewID's.
func ValidID(id string) bool {
	return len(id) == IDLength && strings.Trim(id, "0123456789abcdef") == ""
}
