package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

//go:embed manifests/*.yaml
var manifests embed.FS

const (
	// checkDeadline bounds one check.
	checkDeadline = 4 * time.Minute
	// readyTimeout is what kubectl waits for pods.
	readyTimeout = "--timeout=120s"
)

// check is something that a user of a cluster does. run returns what was seen.
type check struct {
	name string
	run  func(context.Context, *cluster) (string, error)
	// required checks end the run when they fail.
	required bool
}

// checks are in the order in which they run. Each uses a Kubernetes namespace of its own.
var checks = []check{
	{"node is NotReady without CNI configuration", notReady, true},
	{"CNI DaemonSet makes the node Ready", cniDaemonSet, true},
	{"Deployment and Service through kube-proxy", service, false},
	{"Secret, ConfigMap, projected volume", volumes, false},
	{"RuntimeClass crun and runc", runtimeClasses, false},
	{"in-place resize", resize, false},
	{"probes: liveness, readiness, startup", probes, false},
	{"init and sidecar containers", initContainers, false},
	{"kubectl exec, attach, logs, cp, port-forward", sessions, false},
	{"kubectl run -i, kubectl debug", interactive, false},
	{"image volume", imageVolume, false},
	{"user namespace", userNamespace, false},
	{"node agent enters pods' network namespaces", nodeAgent, false},
	{"Job and CronJob", jobs, false},
	{"rolling update while berthd is killed", rollingUpdate, false},
	{"kill berthd and berth-shim: no restart", killBoth, false},
	{"kubelet stats and metrics", stats, false},
	{"drain", drain, false},
	{"delete everything: nothing is left", removal, false},
}

// runChecks runs the checks and prints a table. It returns the number of failures.
func (c *cluster) runChecks(ctx context.Context, w io.Writer) (failed int) {
	wanted := regexp.MustCompile(c.only)
	begin := time.Now()
	ran := 0
	fmt.Fprintln(w)
	for _, k := range checks {
		if ctx.Err() != nil {
			break
		}
		if !k.required && !wanted.MatchString(k.name) {
			continue
		}
		ran++
		if !c.runCheck(ctx, w, k) {
			failed++
			if k.required {
				break
			}
		}
	}
	if err := ctx.Err(); err != nil {
		fmt.Fprintf(w, "interrupted: %v\n", err)
		failed++
	}
	fmt.Fprintf(w, "\n%d passed, %d failed in %.0f s\n", ran-failed, failed, time.Since(begin).Seconds())
	return failed
}

func (c *cluster) runCheck(ctx context.Context, w io.Writer, k check) bool {
	ctx, cancel := context.WithTimeout(ctx, checkDeadline)
	defer cancel()
	begin := time.Now()
	seen, err := k.run(ctx, c)
	word := "pass"
	if err != nil {
		word, seen = "FAIL", err.Error()
	}
	fmt.Fprintf(w, "%s  %-46s %6.1f s  %s\n", word, k.name, time.Since(begin).Seconds(), strings.ReplaceAll(seen, "\n", " "))
	return err == nil
}

// expect compares what was got with what was wanted.
func expect(subject, got, want string) error {
	if strings.TrimSpace(got) != want {
		return fmt.Errorf("%s is %q, want %q", subject, strings.TrimSpace(got), want)
	}
	return nil
}

// waitReady waits until all pods of a namespace with a label are ready.
func (c *cluster) waitReady(ctx context.Context, namespace, selector string) error {
	_, err := c.kubectl(ctx, "", "-n", namespace, "wait", "pod", "--for=condition=Ready", "-l", selector, readyTimeout)
	if err == nil {
		return nil
	}
	events, eventsErr := c.kubectl(ctx, "", "-n", namespace, "get", "events", "-o", "custom-columns=R:.reason,M:.message", "--no-headers")
	return errors.Join(err, eventsErr, errors.New(events))
}

// waitPhase waits until a pod has a phase.
func (c *cluster) waitPhase(ctx context.Context, namespace, pod, phase string) error {
	_, err := c.kubectl(ctx, "", "-n", namespace, "wait", "pod/"+pod, "--for=jsonpath={.status.phase}="+phase, readyTimeout)
	return err
}

// field reads one field of an object.
func (c *cluster) field(ctx context.Context, namespace, object, path string) (string, error) {
	return c.kubectl(ctx, "", "-n", namespace, "get", object, "-o", "jsonpath={"+path+"}")
}
