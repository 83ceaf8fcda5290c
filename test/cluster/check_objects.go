package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func notReady(ctx context.Context, c *cluster) (string, error) {
	const ready = `.status.conditions[?(@.type=="Ready")]`
	var reason string
	err := until(ctx, time.Minute, func(ctx context.Context) error {
		status, err := c.field(ctx, "default", "node/"+nodeName, ready+".status")
		if err != nil {
			return err
		}
		if err := expect("Ready", status, "False"); err != nil {
			return err
		}
		reason, err = c.field(ctx, "default", "node/"+nodeName, ready+".message")
		if err == nil && !strings.Contains(reason, "NetworkReady=false") {
			err = fmt.Errorf("the node's condition is %q, want NetworkReady=false in it", reason)
		}
		return err
	})
	return reason, err
}

func cniDaemonSet(ctx context.Context, c *cluster) (string, error) {
	if err := c.apply(ctx, "network"); err != nil {
		return "", err
	}
	if _, err := c.kubectl(ctx, "", "wait", "node/"+nodeName, "--for=condition=Ready", readyTimeout); err != nil {
		return "", err
	}
	return "host-network pod wrote 10-cluster.conflist", nil
}

func service(ctx context.Context, c *cluster) (string, error) {
	if err := c.apply(ctx, "service"); err != nil {
		return "", err
	}
	if _, err := c.kubectl(ctx, "", "-n", "service", "rollout", "status", "deployment/web", readyTimeout); err != nil {
		return "", err
	}
	if err := c.waitReady(ctx, "service", "app=client"); err != nil {
		return "", err
	}
	ip, err := c.field(ctx, "service", "service/web", ".spec.clusterIP")
	if err != nil {
		return "", err
	}
	seen := map[string]bool{}
	err = until(ctx, time.Minute, func(ctx context.Context) error {
		name, err := c.exec(ctx, "service", "client", "sh", "-c",
			`printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 `+ip+` 80 | tail -n 1`)
		if err != nil {
			return err
		}
		seen[strings.TrimSpace(name)] = true
		if len(seen) < 2 {
			return fmt.Errorf("only %d of 3 pods answered at %s", len(seen), ip)
		}
		return nil
	})
	return fmt.Sprintf("%d pods answered at %s", len(seen), ip), err
}

func volumes(ctx context.Context, c *cluster) (string, error) {
	if err := c.apply(ctx, "volumes"); err != nil {
		return "", err
	}
	if err := c.waitReady(ctx, "volumes", "app=reader"); err != nil {
		return "", err
	}
	script := `cat /secret/password; echo; cat /all/color; echo; cat /etc/file.conf; test -s /all/token && echo token
cat /all/labels; echo; echo $PASSWORD $COLOR; test -n "$POD_IP" && echo ip; touch /scratch/x /memory/x && echo written
touch /secret/x 2>/dev/null || echo readonly; id -u; id -G`
	got, err := c.exec(ctx, "volumes", "reader", "sh", "-c", script)
	if err != nil {
		return "", err
	}
	want := "hunter2\nblue\nline 1\ntoken\napp=\"reader\"\nhunter2 blue\nip\nwritten\nreadonly\n1234\n1234 2000"
	if err := expect("the container's view", got, want); err != nil {
		return "", err
	}
	if _, err := c.kubectl(ctx, "", "-n", "volumes", "patch", "configmap", "c", "-p", `{"data":{"color":"red"}}`); err != nil {
		return "", err
	}
	// Kubelet refreshes volumes with its pod syncs.
	return "read as uid 1234, fsGroup 2000; a change arrived", until(ctx, 3*time.Minute, func(ctx context.Context) error {
		got, err := c.exec(ctx, "volumes", "reader", "cat", "/all/color")
		return errors.Join(err, expect("the changed ConfigMap", got, "red"))
	})
}

func runtimeClasses(ctx context.Context, c *cluster) (string, error) {
	if err := c.apply(ctx, "runtimeclass"); err != nil {
		return "", err
	}
	if err := c.waitReady(ctx, "runtimeclass", "app=known"); err != nil {
		return "", err
	}
	var event string
	err := until(ctx, time.Minute, func(ctx context.Context) (err error) {
		event, err = c.kubectl(ctx, "", "-n", "runtimeclass", "get", "events", "--field-selector", "involvedObject.name=missing,reason=FailedCreatePodSandBox",
			"-o", "jsonpath={.items[0].message}")
		if err == nil && !strings.Contains(event, `"missing"`) {
			err = fmt.Errorf("the event is %q, want the handler's name in it", event)
		}
		return err
	})
	return event, err
}

func resize(ctx context.Context, c *cluster) (string, error) {
	if err := c.apply(ctx, "resize"); err != nil {
		return "", err
	}
	if err := c.waitReady(ctx, "resize", "app=resized"); err != nil {
		return "", err
	}
	const patch = `{"spec":{"containers":[{"name":"a","resources":{"requests":{"cpu":"300m","memory":"64Mi"},"limits":{"cpu":"400m","memory":"128Mi"}}}]}}`
	if _, err := c.kubectl(ctx, "", "-n", "resize", "patch", "pod", "resized", "--subresource", "resize", "-p", patch); err != nil {
		return "", err
	}
	return "limits 400m and 128Mi are in the status, no restart", until(ctx, 2*time.Minute, func(ctx context.Context) error {
		got, err := c.field(ctx, "resize", "pod/resized",
			".status.containerStatuses[0]['resources.limits.cpu','resources.limits.memory','restartCount']")
		return errors.Join(err, expect("limits and restarts", got, "400m 128Mi 0"))
	})
}

func probes(ctx context.Context, c *cluster) (string, error) {
	if err := c.apply(ctx, "probes"); err != nil {
		return "", err
	}
	if err := c.waitReady(ctx, "probes", "app=healthy"); err != nil {
		return "", err
	}
	err := until(ctx, 2*time.Minute, func(ctx context.Context) error {
		restarts, err := c.field(ctx, "probes", "pod/failing", ".status.containerStatuses[0].restartCount")
		if err == nil && (restarts == "" || restarts == "0") {
			err = errors.New("the container with the failing liveness probe was not restarted")
		}
		return err
	})
	if err != nil {
		return "", err
	}
	for pod, want := range map[string]string{"healthy": "true 0", "unready": "false 0"} {
		got, err := c.field(ctx, "probes", "pod/"+pod, ".status.containerStatuses[0]['ready','restartCount']")
		if err := errors.Join(err, expect(pod, got, want)); err != nil {
			return "", err
		}
	}
	return "failing liveness restarts, failing readiness does not", nil
}

func initContainers(ctx context.Context, c *cluster) (string, error) {
	if err := c.apply(ctx, "init"); err != nil {
		return "", err
	}
	if err := c.waitPhase(ctx, "init", "ordered", "Succeeded"); err != nil {
		return "", err
	}
	order, err := c.kubectl(ctx, "", "-n", "init", "logs", "ordered", "-c", "main")
	if err := errors.Join(err, expect("order", order, "first\nsidecar\nsecond")); err != nil {
		return "", err
	}
	last, err := c.kubectl(ctx, "", "-n", "init", "logs", "ordered", "-c", "sidecar")
	return "first, sidecar, second, main; the sidecar ended last", errors.Join(err, expect("the sidecar's log", last, "sidecar-ended"))
}

func imageVolume(ctx context.Context, c *cluster) (string, error) {
	if err := c.apply(ctx, "image-volume"); err != nil {
		return "", err
	}
	if err := c.waitReady(ctx, "image-volume", "app=reader"); err != nil {
		return "", err
	}
	got, err := c.exec(ctx, "image-volume", "reader", "cat", "/content/content.txt")
	return c.content, errors.Join(err, expect("the file", got, "from an image"))
}

// nodeAgent looks, as an agent of a network does, for the network namespace of a pod that started after the agent.
func nodeAgent(ctx context.Context, c *cluster) (string, error) {
	for _, step := range []struct{ manifest, app string }{{"node-agent", "agent"}, {"node-agent-pod", "later"}} {
		if err := c.apply(ctx, step.manifest); err != nil {
			return "", err
		}
		if err := c.waitReady(ctx, "node-agent", "app="+step.app); err != nil {
			return "", err
		}
	}
	ip, err := c.field(ctx, "node-agent", "pod/later", ".status.podIP")
	if err != nil {
		return "", err
	}
	got, err := c.exec(ctx, "node-agent", "agent", "sh", "-c",
		"for ns in /host/var/run/netns/cni-*; do nsenter --net=$ns ip -o -4 address show eth0; done")
	if err == nil && !strings.Contains(got, " "+ip+"/") {
		err = fmt.Errorf("the agent finds the addresses\n%s, want %s", got, ip)
	}
	return "entered the namespace of " + ip + " below /host/var/run/netns", err
}

func userNamespace(ctx context.Context, c *cluster) (string, error) {
	if err := c.apply(ctx, "user-namespace"); err != nil {
		return "", err
	}
	if err := c.waitReady(ctx, "user-namespace", "app=mapped"); err != nil {
		return "", err
	}
	got, err := c.exec(ctx, "user-namespace", "mapped", "sh", "-c", "id -u; cat /c/color; echo; touch /e/x; stat -c %u /e/x; awk '$2 != 0 {print \"mapped\"}' /proc/self/uid_map")
	return "root of the pod is another user on the host", errors.Join(err, expect("the container's view", got, "0\ngreen\n0\nmapped"))
}

func jobs(ctx context.Context, c *cluster) (string, error) {
	if err := c.apply(ctx, "jobs"); err != nil {
		return "", err
	}
	for job, condition := range map[string]string{"sum": "Complete", "fails": "Failed"} {
		if _, err := c.kubectl(ctx, "", "-n", "jobs", "wait", "job/"+job, "--for=condition="+condition, readyTimeout); err != nil {
			return "", err
		}
	}
	code, err := c.kubectl(ctx, "", "-n", "jobs", "get", "pods", "-l", "job-name=fails", "-o", "jsonpath={.items[0].status.containerStatuses[0].state.terminated.exitCode}")
	if err := errors.Join(err, expect("exit code", code, "42")); err != nil {
		return "", err
	}
	if _, err := c.kubectl(ctx, "", "-n", "jobs", "create", "job", "now", "--from=cronjob/each"); err != nil {
		return "", err
	}
	_, err = c.kubectl(ctx, "", "-n", "jobs", "wait", "job/now", "--for=condition=Complete", readyTimeout)
	return "6 completions, exit code 42, a job of a CronJob", err
}

func drain(ctx context.Context, c *cluster) (string, error) {
	if _, err := c.kubectl(ctx, "", "drain", nodeName, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=180s"); err != nil {
		return "", err
	}
	left, err := c.kubectl(ctx, "", "get", "pods", "-A", "--field-selector", "status.phase=Running", "-o", "jsonpath={.items[*].metadata.name}")
	if err == nil && len(strings.Fields(left)) != 1 {
		err = fmt.Errorf("%q run after the drain, want the DaemonSet's pod alone", left)
	}
	return "the DaemonSet's pod is left", err
}

// removal deletes every namespace and looks for what the runtime still has.
func removal(ctx context.Context, c *cluster) (string, error) {
	names, err := c.kubectl(ctx, "", "get", "namespaces", "-o", "jsonpath={.items[*].metadata.name}")
	if err != nil {
		return "", err
	}
	args := []string{"delete", "namespace", "--wait=true", "--timeout=180s"}
	for name := range strings.FieldsSeq(names) {
		if name != "default" && !strings.HasPrefix(name, "kube-") {
			args = append(args, name)
		}
	}
	if _, err := c.kubectl(ctx, "", args...); err != nil {
		return "", err
	}
	return "no pod, container, network namespace or address", until(ctx, time.Minute, func(ctx context.Context) error {
		pods, err := c.node.Berth(ctx, "pods", "-a", "-q")
		if err := errors.Join(err, expect("berth pods", pods, "")); err != nil {
			return err
		}
		for _, pattern := range []string{netnsDir + "/*", "/run/cni-ipam/cluster/10.*"} {
			left, err := filepath.Glob(pattern)
			if err := errors.Join(err, expect(pattern, strings.Join(left, " "), "")); err != nil {
				return err
			}
		}
		entries, err := os.ReadDir(filepath.Join(c.node.Config.State, "containers"))
		if err == nil && len(entries) > 0 {
			err = fmt.Errorf("%d containers are left in the state directory", len(entries))
		}
		return err
	})
}

// exec runs a command in a pod's first container.
func (c *cluster) exec(ctx context.Context, namespace, pod string, command ...string) (string, error) {
	return c.kubectl(ctx, "", append([]string{"-n", namespace, "exec", pod, "--"}, command...)...)
}
