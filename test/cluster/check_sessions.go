package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

func sessions(ctx context.Context, c *cluster) (string, error) {
	if err := c.apply(ctx, "sessions"); err != nil {
		return "", err
	}
	if err := c.waitReady(ctx, "sessions", "app=web"); err != nil {
		return "", err
	}
	for _, step := range []func(context.Context) error{c.checkExec, c.checkAttach, c.checkCopy, c.checkPortForward} {
		if err := step(ctx); err != nil {
			return "", err
		}
	}
	log, err := c.kubectl(ctx, "", "-n", "sessions", "logs", "web", "-c", "web")
	return "exit codes, streams, 8 MiB by cp", errors.Join(err, expect("the log", log, "started"))
}

func (c *cluster) checkExec(ctx context.Context) error {
	got, err := c.kubectl(ctx, "input\n", "-n", "sessions", "exec", "-i", "web", "-c", "web", "--", "cat")
	if err := errors.Join(err, expect("exec", got, "input")); err != nil {
		return err
	}
	_, err = c.kubectl(ctx, "", "-n", "sessions", "exec", "web", "-c", "web", "--", "sh", "-c", "exit 7")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		return fmt.Errorf("exec of exit 7: %w, want exit code 7", err)
	}
	return nil
}

func (c *cluster) checkAttach(ctx context.Context) error {
	got, err := c.kubectl(ctx, "a line\n", "-n", "sessions", "attach", "-i", "web", "-c", "cat")
	if err != nil {
		return err
	}
	if !strings.Contains(got, "got a line") {
		return fmt.Errorf("attach printed %q, want %q in it", got, "got a line")
	}
	return nil
}

func (c *cluster) checkCopy(ctx context.Context) error {
	there, back := c.file("copy"), c.file("copy-back")
	data := bytes.Repeat([]byte("0123456789abcdef"), 8<<20/16)
	if err := os.WriteFile(there, data, 0o600); err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, "", "-n", "sessions", "cp", there, "web:/tmp/copy", "-c", "web"); err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, "", "-n", "sessions", "cp", "web:/tmp/copy", back, "-c", "web"); err != nil {
		return err
	}
	got, err := os.ReadFile(back)
	if err == nil && !bytes.Equal(got, data) {
		err = fmt.Errorf("cp brought %d bytes back, want the same %d", len(got), len(data))
	}
	return errors.Join(err, os.Remove(there), os.Remove(back))
}

func (c *cluster) checkPortForward(ctx context.Context) (err error) {
	const address = "127.0.0.1:18080"
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, filepath.Join(c.programs, "kubectl"), "--kubeconfig", c.adminConfig(),
		"-n", "sessions", "port-forward", "pod/web", "18080:8080", "18081:9")
	if err := cmd.Start(); err != nil {
		cancel()
		return err
	}
	defer func() {
		cancel()
		var exit *exec.ExitError
		if ended := cmd.Wait(); !errors.As(ended, &exit) {
			err = errors.Join(err, fmt.Errorf("port-forward ended by itself: %w", ended))
		}
	}()
	for round := range 3 {
		err := until(ctx, 30*time.Second, func(ctx context.Context) error { return getPage(ctx, "http://"+address+"/", "page") })
		if err != nil {
			return fmt.Errorf("request %d: %w", round, err)
		}
		// A refused port fails its own connection only.
		if err := getPage(ctx, "http://127.0.0.1:18081/", ""); err == nil {
			return errors.New("a port without a listener answered")
		}
	}
	return nil
}

func getPage(ctx context.Context, url, want string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Close = true
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
	return errors.Join(err, expect(url, string(body), want))
}

func interactive(ctx context.Context, c *cluster) (string, error) {
	got, err := c.kubectl(ctx, "abcd1234\n", "run", "interactive", "--image="+c.image, "--restart=Never", "-i", "--rm", "--quiet",
		"--pod-running-timeout=2m", "--", "sh", "-c", "sleep 1; cat; echo ended")
	if err != nil {
		return "", err
	}
	if !strings.Contains(got, "abcd1234") || !strings.Contains(got, "ended") {
		return "", fmt.Errorf("kubectl run -i printed %q", got)
	}
	if _, err := c.kubectl(ctx, "", "run", "debugged", "--image="+c.image, "--labels=app=debugged", "--grace-period=1", "--", "sleep", "3600"); err != nil {
		return "", err
	}
	if err := c.waitReady(ctx, "default", "app=debugged"); err != nil {
		return "", err
	}
	_, err = c.kubectl(ctx, "", "debug", "debugged", "--image="+c.image, "--target=debugged", "-c", "debugger", "--profile=general", "--",
		"sh", "-c", "ps; sleep 3600")
	if err != nil {
		return "", err
	}
	err = until(ctx, time.Minute, func(ctx context.Context) error {
		log, err := c.kubectl(ctx, "", "logs", "debugged", "-c", "debugger")
		if err == nil && strings.Count(log, "sleep 3600") < 2 {
			err = fmt.Errorf("ps of the debugger shows %q, want the container's process", log)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	_, err = c.kubectl(ctx, "", "delete", "pod", "debugged", "--grace-period=1")
	return "the debugger sees its target's processes", err
}
