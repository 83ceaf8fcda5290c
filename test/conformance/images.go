package conformance

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-runtime/berth/test/cache"
	"github.com/berth-runtime/berth/test/command"
	"github.com/berth-runtime/berth/test/imagefactory"
)

// registries are the hosts that critest names; the node asks the registry here instead.
var registries = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io"}

const (
	e2eImages     = "e2e-test-images/"
	stagingImages = "k8s-staging-cri-tools/"
	// digestImage has no tag: critest pulls it by the digest that is compiled into it.
	digestImage = stagingImages + "test-image-digest"
)

//go:embed testdata
var testdata embed.FS

// images are artifacts by repository and tag, without the host.
type images map[string]*imagefactory.Artifact

// push uploads all of them to a registry.
func (im images) push(ctx context.Context, host string) error {
	for _, name := range slices.Sorted(maps.Keys(im)) {
		repository, tag, _ := strings.Cut(name, ":")
		if err := imagefactory.Push(ctx, imagefactory.Target{Host: host, Repository: repository}, im[name], tag); err != nil {
			return err
		}
	}
	return nil
}

// factory holds what several images have in common.
type factory struct {
	debian debian
	base   imagefactory.Layer // busybox
	made   images
	err    error // the first one
}

// makeImages makes every image that critest pulls.
func makeImages(ctx context.Context, c cache.Cache) (images, error) {
	d, err := openDebian(c)
	if err != nil {
		return nil, err
	}
	box, err := compileBusybox(ctx, d)
	if err != nil {
		return nil, err
	}
	f := &factory{debian: d, made: images{}, base: imagefactory.Layer{
		Files: imagefactory.BusyboxTree(box.program, box.applets, passwd, group),
	}}
	f.add(e2eImages+"busybox:1.29-2", f.shell())
	f.webServers(ctx)
	f.programs(ctx)
	f.staging()
	return f.made, f.err
}

// shell is an image of busybox with further files.
func (f *factory) shell(files ...imagefactory.File) imagefactory.Spec {
	spec := imagefactory.Spec{
		Layers: []imagefactory.Layer{f.base},
		Config: ocispec.ImageConfig{Env: []string{"PATH=/usr/sbin:/bin"}, Cmd: []string{"sh"}},
	}
	if len(files) > 0 {
		spec.Layers = append(spec.Layers, imagefactory.Layer{Files: files})
	}
	return spec
}

// add makes an image for this platform, with decoys for others, under some names.
func (f *factory) add(name string, spec imagefactory.Spec, more ...string) {
	if f.err != nil {
		return
	}
	image, err := imagefactory.Build(spec)
	if err == nil {
		image, err = imagefactory.WithDecoys(image)
	}
	if err != nil {
		f.err = fmt.Errorf("make the image %s: %w", name, err)
		return
	}
	for _, n := range append(more, name) {
		f.made[n] = image
	}
}

// webServers makes the images of Debian's nginx and Apache.
func (f *factory) webServers(ctx context.Context) {
	common := []imagefactory.File{imagefactory.Dir("run"), imagefactory.Symlink("var/run", "../run")}
	server := func(program string, packages []string, files ...imagefactory.File) imagefactory.Spec {
		spec := f.shell(append(slices.Clone(common), files...)...)
		if f.err != nil {
			return spec
		}
		installed, err := f.debian.files(ctx, packages...)
		if err != nil {
			f.err = fmt.Errorf("get %s: %w", program, err)
			return spec
		}
		if program == "httpd" { // as everybody but Debian calls it
			installed = append(installed, imagefactory.Hardlink("usr/sbin/httpd", "usr/sbin/apache2"))
		}
		spec.Layers = slices.Insert(spec.Layers, 1, imagefactory.Layer{Files: installed})
		return spec
	}
	nginxPackages := []string{"nginx", "nginx-common", "libpcre2-8-0", "libssl3", "zlib1g", "libcrypt1", "libc6"}
	nginx := func(port string) imagefactory.Spec {
		config := strings.Replace(f.testdata("nginx.conf"), "listen 80;", "listen "+port+";", 1)
		spec := server("nginx", nginxPackages, imagefactory.Regular("etc/nginx/nginx.conf", config),
			imagefactory.Dir("var/lib/nginx"), imagefactory.Dir("var/log/nginx"))
		spec.Config.Cmd = []string{"nginx", "-g", "daemon off;"}
		spec.Config.StopSignal = "SIGQUIT"
		return spec
	}
	f.add(e2eImages+"nginx:1.14-2", nginx("80"))
	f.add(stagingImages+"hostnet-nginx-"+runtime.GOARCH+":latest", nginx("12003"))

	httpd := server("httpd", []string{
		"apache2-bin", "libapr1", "libaprutil1", "libexpat1", "libuuid1", "libpcre2-8-0", "zlib1g", "libcrypt1", "libc6",
	}, imagefactory.Regular("etc/apache2/apache2.conf", f.testdata("httpd.conf")),
		imagefactory.Regular("var/www/index.html", "<html><body><h1>It works!</h1></body></html>\n"))
	httpd.Config.Cmd = []string{"httpd", "-D", "FOREGROUND"}
	httpd.Config.StopSignal = "SIGWINCH"
	f.add(e2eImages+"httpd:2.4.39-4", httpd)
}

// programs makes the images of one static program each.
func (f *factory) programs(ctx context.Context) {
	pause := imagefactory.Program("pause", f.compile(ctx, "pause.c"))
	f.add("pause:3.9", imagefactory.Spec{
		Layers: []imagefactory.Layer{{Files: []imagefactory.File{pause}}},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/pause"}, User: "65535:65535"},
	})
	nonewprivs := imagefactory.Program("nonewprivs", f.compile(ctx, "nonewprivs.c"))
	nonewprivs.Mode |= fs.ModeSetuid
	f.add(e2eImages+"nonewprivs:1.3", imagefactory.Spec{
		Layers: []imagefactory.Layer{{Files: []imagefactory.File{nonewprivs}}},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/nonewprivs"}},
	})
}

// staging makes the images that differ in their names, in a file or in their user.
func (f *factory) staging() {
	marked := func(mark string) imagefactory.Spec { return f.shell(imagefactory.Regular(mark, mark)) }
	for _, name := range []string{"test-image-1:latest", "test-image-2:latest", "test-image-3:latest", "test-image-latest:latest"} {
		f.add(stagingImages+name, marked(strings.TrimSuffix(name, ":latest")))
	}
	f.add(stagingImages+"test-image-tag:test", marked("test-image-tag-test"))
	f.add(stagingImages+"test-image-tag:all", marked("test-image-tag-all"))
	f.add(stagingImages+"test-image-tags:1", marked("test-image-tags"),
		stagingImages+"test-image-tags:2", stagingImages+"test-image-tags:3")
	for name, user := range map[string]string{
		"uid": "1002", "username": "www-data", "uid-group": "1003:users", "username-group": "www-data:www-data",
	} {
		spec := f.shell()
		spec.Config.User = user
		f.add(stagingImages+"test-image-user-"+name+":latest", spec)
	}
	predefined := f.shell(
		imagefactory.Regular("etc/passwd", passwd+"default-user:x:1000:1000:Linux User,,,:/home/default-user:/bin/sh\n"),
		imagefactory.Regular("etc/group", group+"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"))
	predefined.Config.User = "1000"
	f.add(stagingImages+"test-image-predefined-group:latest", predefined)

	// Its digest must not depend on what compiled busybox, and it is a manifest that no index lists.
	if f.err == nil {
		f.made[digestImage], f.err = imagefactory.Build(imagefactory.Spec{
			Layers: []imagefactory.Layer{{Files: []imagefactory.File{imagefactory.Regular("test-image-digest", "test-image-digest")}}},
		})
	}
}

// compile returns the static program of a C source in testdata.
func (f *factory) compile(ctx context.Context, name string) []byte {
	source := f.testdata(name)
	if f.err != nil {
		return nil
	}
	dir, err := f.debian.cache.Get(strings.TrimSuffix(name, ".c"), source, func(dir string) error {
		in := command.Command{Dir: dir, Stdin: source}
		_, err := in.Run(ctx, "gcc", "-static", "-Os", "-s", "-x", "c", "-o", "program", "-")
		return err
	})
	if err != nil {
		f.err = err
		return nil
	}
	program, err := os.ReadFile(filepath.Join(dir, "program"))
	f.err = err
	return program
}

func (f *factory) testdata(name string) string {
	data, err := testdata.ReadFile("testdata/" + name)
	if err != nil && f.err == nil {
		f.err = err
	}
	return string(data)
}

// The accounts of the busybox image that critest expects.
const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`
	group = `root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
mail:x:8:
www-data:x:33:
operator:x:37:
users:x:100:
nobody:x:65534:
`
)
