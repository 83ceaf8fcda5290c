package spec

import (
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/text"
)

// invalid makes the error for a request that is wrong in itself.
func invalid(field string, value any, reason string) error {
	return fmt.Errorf("%s %s: %s: %w", field, quote(value), reason, errdefs.ErrInvalidArgument)
}

// unavailable makes the error for a request that this host cannot grant.
func unavailable(field string, value any, reason string) error {
	return fmt.Errorf("%s %s: %s: %w", field, quote(value), reason, errdefs.ErrFailedPrecondition)
}

// quote shows a value of a request, cut where it would flood a log.
func quote(value any) string {
	const limit = 256
	given, ok := value.(string)
	if !ok {
		return fmt.Sprint(value)
	}
	if len(given) > limit {
		given = text.Head(given, limit) + text.Ellipsis
	}
	return fmt.Sprintf("%q", given)
}

// checkText refuses what the kernel cannot take as a string of a process and
// what JSON cannot carry to the OCI runtime unchanged.
func checkText(field, value string) error {
	if strings.ContainsRune(value, 0) {
		return invalid(field, value, "contains a NUL byte")
	}
	if !utf8.ValidString(value) {
		return invalid(field, value, "is not valid UTF-8")
	}
	return nil
}

// checkAbsolute refuses everything but absolute paths.
func checkAbsolute(field, value string) error {
	if value == "" {
		return invalid(field, value, "must not be empty")
	}
	if err := checkText(field, value); err != nil {
		return err
	}
	if !path.IsAbs(value) {
		return invalid(field, value, "must be an absolute path")
	}
	return nil
}

// maxName bounds the names of pods and containers, which are in every error and log
// line about them. Those of Kubernetes have at most 253 bytes.
const maxName = 255

// checkName refuses what would not do as a name in an error or a log line.
func checkName(field, value string) error {
	if len(value) > maxName {
		return invalid(field, value, fmt.Sprintf("is longer than %d bytes", maxName))
	}
	if strings.ContainsFunc(value, unicode.IsControl) {
		return invalid(field, value, "contains a control character")
	}
	return nil
}

// maxElement is NAME_MAX of the kernel.
const maxElement = 255

// checkElements refuses a path with an element that is too long for any file system.
func checkElements(field, value string) error {
	for part := range strings.SplitSeq(value, "/") {
		if len(part) > maxElement {
			return invalid(field, value, fmt.Sprintf("has an element of more than %d bytes", maxElement))
		}
	}
	return nil
}

// checkRange refuses numbers outside the two bounds.
func checkRange(field string, value, low, high int64) error {
	if value < low || value > high {
		return invalid(field, value, fmt.Sprintf("must be between %d and %d", low, high))
	}
	return nil
}

// hasDotDot tells whether one of the elements of p is "..".
func hasDotDot(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}
