package integration

import (
	"archive/tar"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/imagefactory"
)

// pushBusyboxWith pushes and pulls a busybox image with more files on top.
func pushBusyboxWith(t *testing.T, n *harness.Node, name string, files ...imagefactory.File) string {
	t.Helper()
	image, err := imagefactory.BusyboxWith(imagefactory.Spec{Layers: []imagefactory.Layer{{Files: files}}})
	if err != nil {
		t.Fatal(err)
	}
	id, err := pull(n, n.Push(name, image))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// memberships is a group file in which root is a member of so many groups beside its own.
func memberships(count int) imagefactory.File {
	var text strings.Builder
	text.WriteString("root:x:0:\n")
	for i := range count {
		fmt.Fprintf(&text, "g%d:x:%d:root\n", i, 1000+i)
	}
	return imagefactory.Regular("etc/group", text.String())
}

// TestImageAccounts: what cannot be a user or group file is refused by name, and so are more groups than the kernel gives
// a process. As many as it gives work.
func TestImageAccounts(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	of := func(id string) *runtimeapi.ContainerConfig {
		return n.ContainerConfig([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
			c.Image.Image = id
		})
	}
	for name, c := range map[string]struct {
		file  imagefactory.File
		words []string
	}{
		"device": {imagefactory.File{Path: "etc/passwd", Kind: tar.TypeChar, Major: 10, Minor: 130}, []string{"/etc/passwd of the image", "not a regular file"}},
		"fifo":   {imagefactory.File{Path: "etc/group", Kind: tar.TypeFifo}, []string{"/etc/group of the image", "named pipe"}},
		"groups": {memberships(200_000), []string{"groups of the container", "200001 groups", "65536"}},
		"beyond": {memberships(1 << 16), []string{"groups of the container", "65537 groups", "65536"}},
	} {
		_, err := p.Create(of(pushBusyboxWith(t, n, name, c.file)))
		wantError(t, err, codes.InvalidArgument, c.words...)
	}
	c, err := p.Create(of(pushBusyboxWith(t, n, "most", memberships(1<<16-1))))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	equal(t, "groups of the process", c.Output("sh", "-c", "set -- $(grep ^Groups: /proc/1/status); echo $(($# - 1))"), "65536")
	n.KillDaemon()
	equal(t, "state", c.Status().GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	equal(t, "groups in the status", len(c.Status().GetUser().GetLinux().GetSupplementalGroups()), 1<<16)
}
