package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/imagefactory"
)

// data is an image with two layers, a program and links that would like to lead out of it.
func data(t *testing.T) *imagefactory.Artifact {
	t.Helper()
	image, err := imagefactory.Build(imagefactory.Spec{Layers: []imagefactory.Layer{
		{Files: []imagefactory.File{
			imagefactory.Dir("dir"), imagefactory.Regular("dir/file", "below"), imagefactory.Regular("gone", "x"),
			imagefactory.Program("run", []byte("#!/bin/sh\necho runs\n")),
			imagefactory.Symlink("etc", "/dir"), imagefactory.Symlink("up", "../../../../etc"),
		}},
		{Files: []imagefactory.File{imagefactory.Regular("dir/more", "above"), imagefactory.Whiteout("gone")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// imageMount mounts an image, or a part of it, as kubelet asks for it.
func imageMount(path, ref, sub string) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{
			ContainerPath: path, Readonly: true, Image: &runtimeapi.ImageSpec{Image: ref}, ImageSubPath: sub,
		})
	}
}

// volumeMounts are the mounts of image volumes beneath the state directory.
func volumeMounts(t *testing.T, n *harness.Node) []string {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(n.Config.State, "volumes")))
	if err != nil {
		t.Fatal(err)
	}
	var at []string
	for _, info := range infos {
		at = append(at, info.Mountpoint)
	}
	return at
}

// TestImageVolume: containers of a pod see an image, or a part of it; they cannot write to it and may run what is in it.
// It is mounted once for all of them, survives the removal of the image and the death of the daemon, and goes with the
// last container.
func TestImageVolume(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		ref := n.Push("data", data(t))
		id, err := pull(n, ref)
		if err != nil {
			t.Fatal(err)
		}
		p := n.RunPod()
		whole := p.Start([]string{"sleep", "1000"}, imageMount("/whole", id, ""), imageMount("/dir", id, "dir"))
		part := p.Start([]string{"sleep", "1000"},
			imageMount("/file", ref, "dir/more"), imageMount("/link", ref, "etc/file"), imageMount("/up", ref, "up/file"),
			func(c *runtimeapi.ContainerConfig) {
				c.Mounts[0].Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
			})
		check := func() {
			t.Helper()
			equal(t, "files", whole.Output("sh", "-c", "cd /whole && echo * && cat dir/*"), "dir etc run up\nbelowabove")
			equal(t, "part", whole.Output("ls", "/dir"), "file\nmore")
			equal(t, "a program", whole.Output("/whole/run"), "runs")
			equal(t, "a file, one behind a link and one behind a link that leads up",
				part.Output("cat", "/file", "/link", "/up"), "abovebelowbelow")
			if answer := whole.Exec("touch", "/whole/new"); answer.GetExitCode() == 0 {
				t.Error("a volume was written to")
			}
			if at := volumeMounts(t, n); len(at) != 1 {
				t.Errorf("mounted at %v, want one mount for the pod", at)
			}
		}
		check()
		for _, c := range []*harness.Container{whole, part} {
			for i, m := range c.Status().GetMounts() {
				equal(t, "image_ref in the status", m.GetImage().GetImageRef(), id)
				equal(t, "image in the status", m.GetImage().GetImage(), c.Config.Mounts[i].GetImage().GetImage())
				equal(t, "image_sub_path in the status", m.GetImageSubPath(), c.Config.Mounts[i].GetImageSubPath())
			}
		}
		remove(t, n, id)
		n.KillDaemon()
		check()
		part.Remove()
		equal(t, "files after the other container is gone", whole.Output("cat", "/whole/dir/file"), "below")
		whole.Remove()
		if at := volumeMounts(t, n); len(at) != 0 {
			t.Errorf("still mounted after the last container: %v", at)
		}
	})
}

// TestImageVolumeInUserNamespace: in a pod with a user namespace the files of an image belong to those of the pod that
// they belong to in the image, whether it has one layer or several or is an artifact.
func TestImageVolumeInUserNamespace(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		one, err := imagefactory.Build(imagefactory.Spec{Layers: []imagefactory.Layer{
			{Files: []imagefactory.File{{Path: "file", Content: []byte("one"), UID: 7, GID: 7}}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := imagefactory.BuildBundle(imagefactory.Bundle{
			Type: "application/vnd.example.model.v1", Blobs: []imagefactory.Blob{{MediaType: "text/plain", Content: []byte("a"), Title: "file"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		for repository, a := range map[string]*imagefactory.Artifact{"one": one, "several": data(t), "artifact": bundle} {
			if _, err := pull(n, n.Push(repository, a)); err != nil {
				t.Fatal(err)
			}
		}
		ref := func(repository string) string { return n.Registry.Host + "/" + repository + ":1" }
		p := n.RunPod(userNamespace)
		c := p.Start([]string{"sleep", "1000"}, likePod(p), imageMount("/one", ref("one"), ""),
			imageMount("/several", ref("several"), "dir"), imageMount("/artifact", ref("artifact"), ""))
		equal(t, "owners", c.Output("stat", "-c", "%n %u", "/one/file", "/several/more", "/artifact/file"),
			"/one/file 7\n/several/more 0\n/artifact/file 0")
		equal(t, "files", c.Output("cat", "/one/file", "/several/more", "/artifact/file"), "oneabovea")
	})
}

func remove(t *testing.T, n *harness.Node, ref string) {
	t.Helper()
	if _, err := n.Images.RemoveImage(n.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatalf("remove image %s: %v", ref, err)
	}
}

// TestImageVolumeRefusals: what cannot be mounted is refused when the container is created, with the field, and with the
// word at the beginning that kubelet looks for; nothing stays mounted.
func TestImageVolumeRefusals(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	p := n.RunPod()
	id, err := pull(n, n.Push("data", data(t)))
	if err != nil {
		t.Fatal(err)
	}
	const word = "ImageVolumeMountFailed"
	for name, c := range map[string]struct {
		change func(*runtimeapi.Mount)
		code   codes.Code
		begins string
		field  string
	}{
		"writable":      {func(m *runtimeapi.Mount) { m.Readonly = false }, codes.InvalidArgument, "", "mounts[0].readonly"},
		"host_path":     {func(m *runtimeapi.Mount) { m.HostPath = "/tmp" }, codes.InvalidArgument, "", "mounts[0].host_path"},
		"absolute":      {func(m *runtimeapi.Mount) { m.ImageSubPath = "/dir" }, codes.InvalidArgument, "", "mounts[0].image_sub_path"},
		"up":            {func(m *runtimeapi.Mount) { m.ImageSubPath = "../dir" }, codes.InvalidArgument, "", "mounts[0].image_sub_path"},
		"no_image":      {func(m *runtimeapi.Mount) { m.Image.Image = "example.org/none:1" }, codes.NotFound, word, "mounts[0].image"},
		"no_part":       {func(m *runtimeapi.Mount) { m.ImageSubPath = "dir/none" }, codes.InvalidArgument, word, "mounts[0].image_sub_path"},
		"behind_a_link": {func(m *runtimeapi.Mount) { m.ImageSubPath = "up/up" }, codes.InvalidArgument, word, "mounts[0].image_sub_path"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.Create(n.ContainerConfig([]string{"true"}, imageMount("/data", id, ""), func(config *runtimeapi.ContainerConfig) {
				c.change(config.Mounts[0])
			}))
			text := status.Convert(err).Message()
			if status.Code(err) != c.code || !strings.HasPrefix(text, c.begins) || !strings.Contains(text, c.field) {
				t.Errorf("got %v, want %v with a text that begins with %q and names %s", err, c.code, c.begins, c.field)
			}
		})
	}
	if at := volumeMounts(t, n); len(at) != 0 {
		t.Errorf("still mounted: %v", at)
	}
}

// TestArtifact: what is no image is pulled, listed and removed like one, and its files can be mounted; no container runs
// from it.
func TestArtifact(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	artifact, err := imagefactory.BuildBundle(imagefactory.Bundle{
		Type: "application/vnd.example.model.v1",
		Blobs: []imagefactory.Blob{
			{MediaType: "application/octet-stream", Content: []byte("weights"), Title: "model/weights.bin"},
			{MediaType: "application/vnd.oci.image.layer.v1.tar", Content: []byte("readme"), Title: "README"},
			{Archive: &imagefactory.Layer{Files: []imagefactory.File{imagefactory.Regular("docs/a", "unpacked")}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ref := n.Push("model", artifact)
	id, err := pull(n, ref)
	if err != nil {
		t.Fatal(err)
	}
	image := imageStatus(t, n, ref)
	equal(t, "ID", image.GetId(), id)
	if image.GetSize() == 0 || len(image.GetRepoTags()) != 1 || len(image.GetRepoDigests()) != 1 {
		t.Errorf("status is %v, want a size, a tag and a digest", image)
	}
	verbose, err := n.Images.ImageStatus(n.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Verbose: true})
	if err != nil || !strings.Contains(verbose.GetInfo()["info"], "application/vnd.example.model.v1") {
		t.Errorf("verbose status is %v, %v, want the artifact's type in it", verbose.GetInfo(), err)
	}
	list, err := n.Images.ListImages(n.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 2 {
		t.Errorf("listed are %v, %v, want the image and the artifact", list.GetImages(), err)
	}
	p := n.RunPod()
	_, err = p.Create(n.ContainerConfig([]string{"true"}, func(c *runtimeapi.ContainerConfig) { c.Image.Image = ref }))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), "artifact") {
		t.Errorf("create a container from the artifact: got %v, want a refusal that says so", err)
	}
	c := p.Start([]string{"sleep", "1000"}, imageMount("/model", id, ""), imageMount("/w", id, "model/weights.bin"))
	remove(t, n, ref)
	n.KillDaemon()
	equal(t, "files", c.Output("sh", "-c", "cd /model && find . -type f | sort && cat README docs/a /w"),
		"./README\n./docs/a\n./model/weights.bin\nreadmeunpackedweights")
	equal(t, "image_ref in the status", c.Status().GetMounts()[0].GetImage().GetImageRef(), id)
	c.Remove()
	n.Eventually("the artifact's files are gone", func() error {
		left, err := filepath.Glob(filepath.Join(n.Config.Root, "images", "store-1", "artifacts", "*"))
		if err == nil && len(left) > 0 {
			err = &os.PathError{Op: "find", Path: left[0], Err: os.ErrExist}
		}
		return err
	})
}
