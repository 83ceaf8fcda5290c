package checkpoint

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/pkg/archive"
)

// ExportTree writes what is in a directory as a tar archive.
func ExportTree(ctx context.Context, w io.Writer, dir string) error {
	if err := archive.WriteDiff(ctx, w, "", dir); err != nil {
		return fmt.Errorf("export %s: %w", dir, err)
	}
	return nil
}

// ImportTree puts what ExportTree wrote into a directory, and nothing anywhere else.
func ImportTree(ctx context.Context, dir string, r io.Reader) error {
	if _, err := archive.Apply(ctx, dir, r); err != nil {
		return fmt.Errorf("import into %s: %w", dir, err)
	}
	return nil
}
