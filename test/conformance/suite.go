package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-runtime/berth/test/cache"
	"github.com/berth-runtime/berth/test/command"
)

const (
	toolsModule = "tools/go.mod"
	criTools    = "sigs.k8s.io/cri-tools"
	// suiteDeadline is how long a pass may take; one without trouble takes a few minutes.
	suiteDeadline = 30 * time.Minute
	// suiteGrace is how long critest may clean up after its deadline.
	suiteGrace = 2 * time.Minute
)

// suite is critest, ready to run.
type suite struct {
	// dir has critest and ginkgo, which runs it in several processes at a time.
	dir string
	// version is that of the module.
	version string
}

// buildSuite builds critest with one constant replaced. It pulls an image by a digest that only the original image has,
// which is out of reach; there is a flag for the names of images but none for this. The new value names our image, and
// what critest demands of a pull by digest stays what it is.
func buildSuite(ctx context.Context, c cache.Cache, root, imageDigest string) (suite, error) {
	found, err := command.Run(ctx, root, "go", "list", "-modfile="+toolsModule, "-m", "-f", "{{.Version}} {{.Dir}}", criTools)
	if err != nil {
		return suite{}, err
	}
	version, original, _ := strings.Cut(found, " ")
	sums, err := os.ReadFile(filepath.Join(root, filepath.Dir(toolsModule), "go.sum"))
	if err != nil {
		return suite{}, fmt.Errorf("read the sums of the tools: %w", err)
	}
	recipe := strings.Join([]string{runtime.Version(), version, imageDigest, string(sums)}, "\n")
	dir, err := c.Get("critest", recipe, func(dir string) error {
		work, err := os.MkdirTemp(dir, "source-")
		if err != nil {
			return err
		}
		if err := copyTool(work, root, original, imageDigest); err != nil {
			return err
		}
		return errors.Join(compileTool(ctx, root, work, dir, version), os.RemoveAll(work))
	})
	return suite{dir: dir, version: version}, err
}

// compileTool compiles critest, and ginkgo, from the copies in work into dir.
func compileTool(ctx context.Context, root, work, dir, version string) error {
	file := filepath.Join(work, "go.mod")
	for _, argv := range [][]string{
		{"go", "mod", "edit", "-replace=" + criTools + "=" + filepath.Join(work, "cri-tools"), file},
		{
			"go", "test", "-c", "-modfile=" + file, "-ldflags=-s -w -X " + criTools + "/pkg/version.Version=" + version,
			"-o", dir + "/critest", criTools + "/cmd/critest",
		},
		{"go", "build", "-modfile=" + file, "-o", dir + "/", "github.com/onsi/ginkgo/v2/ginkgo"},
	} {
		if _, err := command.Run(ctx, root, argv...); err != nil {
			return err
		}
	}
	return nil
}

// copyTool copies the module of critest, whose original must not be changed, and the module file of our tools.
func copyTool(dir, root, original, imageDigest string) error {
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(root, filepath.Dir(toolsModule), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			return fmt.Errorf("copy %s of the tools: %w", name, err)
		}
	}
	module := filepath.Join(dir, "cri-tools")
	if err := os.CopyFS(module, os.DirFS(original)); err != nil {
		return fmt.Errorf("copy critest: %w", err)
	}
	constants := filepath.Join(module, "pkg", "validate", "consts.go")
	source, err := os.ReadFile(constants)
	if err != nil {
		return fmt.Errorf("read critest's constants: %w", err)
	}
	source, err = replaceDigest(source, imageDigest)
	if err != nil {
		return fmt.Errorf("change %s: %w", constants, err)
	}
	return errors.Join(os.Remove(constants), os.WriteFile(constants, source, 0o600))
}

var digestConstant = regexp.MustCompile(`(testLinuxImageWithDigest\s+=\s+registry \+ "test-image-digest@)sha256:[0-9a-f]{64}"`)

// replaceDigest changes the digest in the source of critest's constants.
func replaceDigest(source []byte, imageDigest string) ([]byte, error) {
	if n := len(digestConstant.FindAll(source, -1)); n != 1 {
		return nil, fmt.Errorf("the digest of test-image-digest is there %d times instead of once", n)
	}
	return digestConstant.ReplaceAll(source, []byte(`${1}`+imageDigest+`"`)), nil
}

// pass is one run of the suite.
type pass struct {
	endpoint string
	handler  string
	// processes is how many specs run at a time.
	processes int
	// cni has the network made by CNI plugins; it is built in otherwise.
	cni bool
	// websocket chooses the protocol of exec, attach and port-forward; it is SPDY otherwise.
	websocket bool
	// focus is a regular expression of names of specs; empty is all.
	focus string
	// dir receives critest's output and report, tmp its temporary files.
	dir, tmp string
}

// run runs the suite and returns its report. That specs fail is no error.
func (s suite) run(ctx context.Context, p pass) (_ *report, err error) {
	ctx, cancel := context.WithTimeout(ctx, suiteDeadline+suiteGrace)
	defer cancel()
	log, err := os.Create(filepath.Join(p.dir, "critest.log"))
	if err != nil {
		return nil, fmt.Errorf("make critest's log: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	reportFile := filepath.Join(p.dir, "critest.json")
	args := []string{
		"-runtime-endpoint=" + p.endpoint, "-runtime-handler=" + p.handler,
		fmt.Sprintf("-websocket-exec=%t", p.websocket), fmt.Sprintf("-websocket-attach=%t", p.websocket),
		fmt.Sprintf("-websocket-portforward=%t", p.websocket),
		"-ginkgo.json-report=" + reportFile, "-ginkgo.no-color", "-ginkgo.timeout=" + suiteDeadline.String(), "-test.timeout=0",
	}
	if p.focus != "" {
		args = append(args, "-ginkgo.focus="+p.focus)
	}
	if p.processes > 1 { // Ginkgo refuses to hear of it otherwise
		args = append(args, "-parallel="+strconv.Itoa(p.processes))
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.dir, "critest"), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.tmp, log, log
	cmd.Env = append(os.Environ(), "TMPDIR="+p.tmp, "PATH="+s.dir+":"+os.Getenv("PATH"))
	// It may have processes of its own.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	ended := cmd.Run()
	r, err := readReport(reportFile)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("run critest: %w", err), ended, tail(log.Name()))
	}
	if ended != nil && len(r.with(failed)) == 0 && r.problem() == "" {
		return nil, errors.Join(errors.New("critest fails although no spec does"), ended, tail(log.Name()))
	}
	return r, nil
}

// tail is an error that shows the end of a log.
func tail(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s ends:\n%s", file, command.Tail(string(data), 40))
}
