package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageItem is an image as JSON and YAML show it. The names are stable.
type imageItem struct {
	ID      string   `json:"id"`
	Tags    []string `json:"tags"`
	Digests []string `json:"digests"`
	Size    uint64   `json:"size"`
	User    string   `json:"user"`
	Pinned  bool     `json:"pinned"`
}

func (n *node) listImages(ctx context.Context) ([]*runtimeapi.Image, error) {
	ctx, cancel := n.ask(ctx)
	defer cancel()
	resp, err := n.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(resp.Images, func(a, b *runtimeapi.Image) int {
		return cmp.Or(slices.Compare(a.RepoTags, b.RepoTags), slices.Compare(a.RepoDigests, b.RepoDigests), cmp.Compare(a.Id, b.Id))
	})
	return resp.Images, nil
}

// image returns an image by reference or ID, nil if there is none.
func (n *node) image(ctx context.Context, ref string) (*runtimeapi.Image, error) {
	ctx, cancel := n.ask(ctx)
	defer cancel()
	resp, err := n.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		return nil, err
	}
	return resp.Image, nil
}

// findImages returns the images that a word stands for: what the runtime makes
// of it, else those whose ID begins with it.
func (n *node) findImage(ctx context.Context, word string) (*runtimeapi.Image, error) {
	if word == "" {
		return nil, errors.New("the name of the image is empty")
	}
	image, err := n.image(ctx, word)
	if image != nil && err == nil {
		return image, nil
	}
	all, listErr := n.listImages(ctx)
	if listErr != nil {
		return nil, errors.Join(err, listErr)
	}
	var found []*runtimeapi.Image
	for _, i := range all {
		if strings.HasPrefix(i.Id, word) || strings.HasPrefix(strings.TrimPrefix(i.Id, "sha256:"), word) {
			found = append(found, i)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		targets := make([]target, len(found))
		for i, image := range found {
			targets[i] = target{image: image}
		}
		return nil, (&inventory{}).ambiguous(word, targets)
	case err != nil:
		return nil, err
	}
	return nil, nil //nolint:nilnil // absence is an answer here, as it is in ImageStatus
}

func (a *app) imagesCommand() *cobra.Command {
	var quiet, noTrunc, digests bool
	cmd := &cobra.Command{
		Use:   "images [IMAGE]",
		Short: "List images",
		Args:  takes(cobra.MaximumNArgs(1), "at most the name of one image"),
		RunE: func(cmd *cobra.Command, words []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, n *node) error {
				images, err := n.selectImages(ctx, words)
				if err != nil {
					return err
				}
				if quiet {
					return a.printImageIDs(images)
				}
				return a.showImages(images, noTrunc, digests)
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "show IDs in full")
	cmd.Flags().BoolVar(&digests, "digests", false, "show digests")
	return cmd
}

func (n *node) selectImages(ctx context.Context, words []string) ([]*runtimeapi.Image, error) {
	images, err := n.listImages(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	if len(words) == 0 {
		return images, nil
	}
	return slices.DeleteFunc(images, func(i *runtimeapi.Image) bool { return !imageMatches(i, words[0]) }), nil
}

// imageMatches says whether an image goes by a name, with or without its tag,
// host and folder, or by the beginning of an ID.
func imageMatches(i *runtimeapi.Image, word string) bool {
	if strings.HasPrefix(strings.TrimPrefix(i.Id, "sha256:"), strings.TrimPrefix(word, "sha256:")) {
		return true
	}
	for _, name := range append(slices.Clone(i.RepoTags), i.RepoDigests...) {
		repo, _ := splitReference(name)
		if name == word || repo == word || strings.HasSuffix(name, "/"+word) || strings.HasSuffix(repo, "/"+word) {
			return true
		}
	}
	return false
}

func (a *app) printImageIDs(images []*runtimeapi.Image) error {
	for _, i := range images {
		if _, err := fmt.Fprintln(a.Out, i.Id); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) showImages(images []*runtimeapi.Image, noTrunc, digests bool) error {
	items := make([]imageItem, len(images))
	for i, img := range images {
		items[i] = newImageItem(img)
	}
	return a.show(items, func() *table {
		t := &table{head: []string{"REPOSITORY", "TAG", "IMAGE ID", "SIZE", "PINNED"}}
		if digests {
			t.head = []string{"REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "SIZE", "PINNED"}
		}
		for _, i := range items {
			id := short(i.ID)
			if noTrunc {
				id = i.ID
			}
			for _, name := range i.names() {
				cells := []string{name.repo, orDash(name.tag), id, size(i.Size), yes(i.Pinned)}
				if digests {
					cells = slices.Insert(cells, 2, orDash(i.digestOf(name.repo)))
				}
				t.add(cells...)
			}
		}
		return t
	})
}

func newImageItem(i *runtimeapi.Image) imageItem {
	user := i.Username
	if i.Uid != nil {
		user = fmt.Sprint(i.Uid.Value)
	}
	return imageItem{
		ID: i.Id, Tags: append([]string{}, i.RepoTags...), Digests: append([]string{}, i.RepoDigests...),
		Size: i.Size, User: user, Pinned: i.Pinned,
	}
}

// repoTag is one line of a table of images.
type repoTag struct{ repo, tag string }

// names are the tags of an image; one that has none goes by its repositories.
func (i *imageItem) names() []repoTag {
	var out []repoTag
	for _, name := range i.Tags {
		repo, tag := splitReference(name)
		out = append(out, repoTag{repo: repo, tag: tag})
	}
	if len(out) > 0 {
		return out
	}
	for _, name := range i.Digests {
		repo, _ := splitReference(name)
		out = append(out, repoTag{repo: repo})
	}
	if len(out) == 0 {
		return []repoTag{{repo: "-"}}
	}
	return out
}

func (i *imageItem) digestOf(repo string) string {
	for _, name := range i.Digests {
		if digest, ok := strings.CutPrefix(name, repo+"@"); ok {
			return digest
		}
	}
	return ""
}

// splitReference takes the tag or digest off a reference.
func splitReference(name string) (repo, tag string) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name, ""
	}
	if tagged, ok := named.(reference.Tagged); ok {
		tag = tagged.Tag()
	}
	return named.Name(), tag
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func (a *app) rmiCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rmi IMAGE…",
		Short: "Remove images and all their tags",
		Args:  takes(cobra.MinimumNArgs(1), "the names or IDs of images"),
		RunE: func(cmd *cobra.Command, words []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, n *node) error {
				containers, err := n.containers(ctx)
				if err != nil {
					return fmt.Errorf("list containers: %w", err)
				}
				var errs []error
				for _, word := range words {
					if err := a.removeImage(ctx, n, word, force, containers); err != nil {
						errs = append(errs, fmt.Errorf("remove image %s: %w", word, err))
					}
				}
				return errors.Join(errs...)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove even if in use; containers keep running")
	return cmd
}

func (a *app) removeImage(ctx context.Context, n *node, word string, force bool, containers []*runtimeapi.Container) error {
	image, err := n.findImage(ctx, word)
	if err != nil {
		return err
	}
	if image == nil {
		return &hintedError{err: errors.New("image not found"), next: "List images with: berth images"}
	}
	for _, c := range containers {
		if c.ImageId == image.Id && !force {
			return &hintedError{
				err:  fmt.Errorf("container %s (%s) uses it", short(c.Id), c.Metadata.GetName()),
				next: "Remove the container first with: berth rm " + short(c.Id) + ", or use --force",
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if _, err := n.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image.Id}}); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.Out, image.Id)
	return err
}
