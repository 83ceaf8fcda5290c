package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"
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
func buildSuite(ctx context.Context, c cache, root, imageDigest string) (suite, error) {
	s := suite{dir: filepath.Join(c.dir, "bin")}
	list := func(args ...string) (string, error) {
		return run(ctx, root, append([]string{"go", "list", "-modfile=" + toolsModule}, args...)...)
	}
	version, err := list("-m", "-f", "{{.Version}}", criTools)
	if err != nil {
		return s, err
	}
	s.version = version
	validate, err := list("-f", "{{.Dir}}", criTools+"/pkg/validate")
	if err != nil {
		return s, err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return s, fmt.Errorf("make a directory for critest: %w", err)
	}
	overlay, err := replaceDigest(s.dir, filepath.Join(validate, "consts.go"), imageDigest)
	if err != nil {
		return s, err
	}
	if _, err := run(ctx, root, "go", "test", "-c", "-modfile="+toolsModule, "-overlay="+overlay,
		"-ldflags=-s -w -X "+criTools+"/pkg/version.Version="+version,
		"-o", s.program(), criTools+"/cmd/critest"); err != nil {
		return s, err
	}
	_, err = run(ctx, root, "go", "build", "-modfile="+toolsModule, "-o", s.dir+"/", "github.com/onsi/ginkgo/v2/ginkgo")
	return s, err
}

func (s suite) program() string { return filepath.Join(s.dir, "critest") }

var digestConstant = regexp.MustCompile(`(testLinuxImageWithDigest\s+=\s+registry \+ "test-image-digest@)sha256:[0-9a-f]{64}"`)

// replaceDigest writes a changed copy of critest's constants and the file that tells the compiler to take it.
func replaceDigest(dir, original, imageDigest string) (overlay string, err error) {
	source, err := os.ReadFile(original)
	if err != nil {
		return "", fmt.Errorf("read critest's constants: %w", err)
	}
	if n := len(digestConstant.FindAll(source, -1)); n != 1 {
		return "", fmt.Errorf("find the digest of test-image-digest in %s: it is there %d times", original, n)
	}
	changed := filepath.Join(dir, "consts.go.txt")
	source = digestConstant.ReplaceAll(source, []byte(`${1}`+imageDigest+`"`))
	if err := os.WriteFile(changed, source, 0o600); err != nil {
		return "", fmt.Errorf("write critest's constants: %w", err)
	}
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	if err != nil {
		return "", fmt.Errorf("encode the overlay: %w", err)
	}
	overlay = filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		return "", fmt.Errorf("write the overlay: %w", err)
	}
	return overlay, nil
}

// pass is one run of the suite.
type pass struct {
	endpoint string
	handler  string
	// processes is how many specs run at a time.
	processes int
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
		"-runtime-endpoint=" + p.endpoint, "-runtime-handler=" + p.handler, "-parallel=" + strconv.Itoa(p.processes),
		fmt.Sprintf("-websocket-exec=%t", p.websocket), fmt.Sprintf("-websocket-attach=%t", p.websocket),
		fmt.Sprintf("-websocket-portforward=%t", p.websocket),
		"-ginkgo.json-report=" + reportFile, "-ginkgo.no-color", "-ginkgo.timeout=" + suiteDeadline.String(), "-test.timeout=0",
	}
	if p.focus != "" {
		args = append(args, "-ginkgo.focus="+p.focus)
	}
	cmd := exec.CommandContext(ctx, s.program(), args...)
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
	return fmt.Errorf("%s ends:\n%s", file, lastLines(string(data), 40))
}
