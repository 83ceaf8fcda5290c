package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pastSize is in the resolver's error for a body that is longer than promised.
const pastSize = "read past expected size"

// download is a blob on its way from a registry into the store. A reader of
// it gets the bytes as they are written.
type download struct {
	transfer *transfer
	desc     ocispec.Descriptor
	ref      string
	body     io.ReadCloser
	writer   content.Writer
	done     int64
	err      error // the first error of registry or disk
}

// download begins to fetch a blob. If the store has it already the transfer's
// lease holds it from now on and the error is ErrAlreadyExists.
func (t *transfer) download(ctx context.Context, desc ocispec.Descriptor) (*download, error) {
	d := &download{transfer: t, desc: desc, ref: "fetch-" + t.id + "-" + desc.Digest.String()}
	var err error
	d.writer, err = content.OpenWriter(ctx, t.store.gen.content, content.WithRef(d.ref), content.WithDescriptor(desc))
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", desc.Digest, err)
	}
	if d.body, err = t.fetcher.Fetch(context.WithValue(ctx, blobSize{}, desc.Size), desc); err != nil {
		return nil, errors.Join(fmt.Errorf("fetch %s: %w", desc.Digest, remoteError{err}), d.abort(ctx))
	}
	t.progress.setLayer(desc.Digest.String(), LayerDownloading, 0)
	return d, nil
}

// Read hands on what comes from the registry, once it is written.
func (d *download) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.body.Read(p)
	if n > 0 {
		if _, werr := d.writer.Write(p[:n]); werr != nil {
			d.err = fmt.Errorf("write blob %s: %w", d.desc.Digest, werr)
			return 0, d.err
		}
		d.done += int64(n)
		d.transfer.progress.setLayer(d.desc.Digest.String(), LayerDownloading, d.done)
	}
	if err == nil && d.done > d.desc.Size || err != nil && strings.Contains(err.Error(), pastSize) {
		err = d.wrong("more than the promised %d bytes came", d.desc.Size)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		d.err = fmt.Errorf("fetch %s: %w", d.desc.Digest, remoteError{err})
		return n, d.err
	}
	return n, err
}

// commit reads what is left and keeps the blob if it has its size and digest.
func (d *download) commit(ctx context.Context) error {
	if _, err := io.Copy(io.Discard, d); err != nil {
		return errors.Join(err, d.abort(ctx))
	}
	d.transfer.progress.setLayer(d.desc.Digest.String(), LayerUnpacking, d.done)
	if d.done != d.desc.Size {
		return errors.Join(d.abort(ctx), fmt.Errorf("fetch %s: %w", d.desc.Digest,
			d.wrong("%d bytes came instead of the promised %d", d.done, d.desc.Size)))
	}
	if got := d.writer.Digest(); got != d.desc.Digest && got.Algorithm() == d.desc.Digest.Algorithm() {
		return errors.Join(d.abort(ctx), fmt.Errorf("fetch %s: %w", d.desc.Digest,
			d.wrong("the registry sent something else, with digest %s", got)))
	}
	if err := d.writer.Commit(ctx, d.desc.Size, d.desc.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return errors.Join(fmt.Errorf("keep blob %s: %w", d.desc.Digest, err), d.abort(ctx))
	}
	return d.body.Close()
}

func (d *download) wrong(format string, args ...any) error {
	return &wrongBytesError{digest: d.desc.Digest, text: fmt.Sprintf(format, args...)}
}

// abort forgets what was written. It may follow a failed commit.
func (d *download) abort(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
	defer cancel()
	d.transfer.noteFull(d.err)
	var errs []error
	if d.body != nil {
		errs = append(errs, d.body.Close())
	}
	errs = append(errs, d.writer.Close())
	if err := d.transfer.store.gen.content.Abort(ctx, d.ref); err != nil && !errdefs.IsNotFound(err) {
		errs = append(errs, fmt.Errorf("remove half written blob %s: %w", d.desc.Digest, err))
	}
	return errors.Join(errs...)
}

// fetchBlob fetches a blob as it is.
func (t *transfer) fetchBlob(ctx context.Context, desc ocispec.Descriptor) error {
	d, err := t.download(ctx, desc)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.commit(ctx); err != nil {
		return err
	}
	t.progress.setLayer(desc.Digest.String(), LayerDone, desc.Size)
	return nil
}

// noteFull gives the reserve back as soon as the disk is seen to be full: the
// clean-up that follows has to write.
func (t *transfer) noteFull(err error) {
	if isFull(err) {
		t.store.reserve.release()
	}
}
