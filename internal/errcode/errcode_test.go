package errcode

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
)

// TestThereAndBack: an error keeps its kind over a connection, where its code is all that is known of the kind.
func TestThereAndBack(t *testing.T) {
	for _, k := range kinds {
		code := Of(fmt.Errorf("do it: %w", k.kind))
		if code != k.code {
			t.Errorf("%v has code %v, want %v", k.kind, code, k.code)
		}
		if back := Kind(code); !errors.Is(back, k.kind) && !errors.As(k.kind, new(syscall.Errno)) {
			t.Errorf("%v came back as %v", k.kind, back)
		}
	}
	if got := Of(errors.New("who knows")); got != codes.Unknown {
		t.Errorf("an error without a kind has code %v", got)
	}
	if got := Kind(codes.Unknown); !errdefs.IsUnknown(got) {
		t.Errorf("a code without a kind is %v", got)
	}
}

// TestBlameComesFirst: of an error with several kinds the one counts that blames the request.
func TestBlameComesFirst(t *testing.T) {
	if got := Of(errors.Join(errdefs.ErrUnavailable, fmt.Errorf("see above: %w", errdefs.ErrInvalidArgument))); got != codes.InvalidArgument {
		t.Errorf("got %v", got)
	}
}
