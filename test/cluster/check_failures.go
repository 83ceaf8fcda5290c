package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// rollingUpdate changes a Deployment while berthd is killed again and again.
func rollingUpdate(ctx context.Context, c *cluster) (string, error) {
	if err := c.apply(ctx, "rolling-update"); err != nil {
		return "", err
	}
	if _, err := c.kubectl(ctx, "", "-n", "rolling-update", "rollout", "status", "deployment/web", readyTimeout); err != nil {
		return "", err
	}
	before, err := c.restarts(ctx)
	if err != nil {
		return "", err
	}
	if _, err := c.kubectl(ctx, "", "-n", "rolling-update", "set", "env", "deployment/web", "VERSION=two"); err != nil {
		return "", err
	}
	const kills = 5
	for range kills {
		if err := c.node.Restart(ctx, unix.SIGKILL); err != nil {
			return "", fmt.Errorf("restart berthd after kill -9: %w", err)
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(1500 * time.Millisecond):
		}
	}
	if _, err := c.kubectl(ctx, "", "-n", "rolling-update", "rollout", "status", "deployment/web", readyTimeout); err != nil {
		return "", err
	}
	err = until(ctx, time.Minute, func(ctx context.Context) error {
		pods, err := c.kubectl(ctx, "", "-n", "rolling-update", "get", "pods", "-o", "jsonpath={.items[*].spec.containers[0].env[0].value}")
		return errors.Join(err, expect("versions", pods, strings.TrimSpace(strings.Repeat("two ", 6))))
	})
	if err != nil {
		return "", err
	}
	after, err := c.restarts(ctx)
	if err != nil {
		return "", err
	}
	for id, n := range after {
		if was, old := before[id]; old && n != was {
			return "", c.restarted(ctx, id, fmt.Errorf("container %s restarted: %d times before, %d after", id, was, n))
		}
	}
	return fmt.Sprintf("6 pods replaced, berthd killed %d times", kills), nil
}

// killBoth kills berthd and berth-shim at once and looks for restarted containers.
func killBoth(ctx context.Context, c *cluster) (string, error) {
	before, err := c.restarts(ctx)
	if err != nil {
		return "", err
	}
	if err := c.node.Kill(); err != nil {
		return "", err
	}
	if err := c.node.EndShim(unix.SIGKILL); err != nil {
		return "", err
	}
	if err := c.node.StartDaemon(ctx); err != nil {
		return "", err
	}
	// Kubelet has looked at each pod twice.
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(25 * time.Second):
	}
	after, err := c.restarts(ctx)
	if err != nil {
		return "", err
	}
	for id, n := range before {
		if now, there := after[id]; !there || now != n {
			return "", c.restarted(ctx, id, fmt.Errorf("container %s: %d restarts before, %d after (there: %v)", id, n, now, there))
		}
	}
	return fmt.Sprintf("%d containers went on", len(before)), nil
}

// restarted adds the events of a restarted container's pod, which name the cause, to an error.
func (c *cluster) restarted(ctx context.Context, id string, err error) error {
	namespace, rest, _ := strings.Cut(id, "/")
	pod, _, _ := strings.Cut(rest, "/")
	events, eventsErr := c.kubectl(ctx, "", "-n", namespace, "get", "events", "--field-selector", "involvedObject.name="+pod,
		"-o", "custom-columns=R:.reason,N:.count,M:.message", "--no-headers")
	return errors.Join(err, eventsErr, errors.New(events))
}

// restarts returns how often each container of the cluster has restarted, by namespace/pod/container.
// The container of the probes check that fails on purpose is left out.
func (c *cluster) restarts(ctx context.Context) (map[string]int, error) {
	text, err := c.kubectl(ctx, "", "get", "pods", "-A", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Namespace, Name string }
			Status   struct {
				ContainerStatuses []struct {
					Name         string
					RestartCount int
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("read the list of pods: %w", err)
	}
	counts := map[string]int{}
	for _, pod := range list.Items {
		if pod.Metadata.Namespace == "probes" && pod.Metadata.Name == "failing" {
			continue
		}
		for _, s := range pod.Status.ContainerStatuses {
			counts[pod.Metadata.Namespace+"/"+pod.Metadata.Name+"/"+s.Name] = s.RestartCount
		}
	}
	return counts, nil
}

// stats looks for what kubelet serves from the runtime's stats and metrics.
func stats(ctx context.Context, c *cluster) (string, error) {
	var pods int
	err := until(ctx, time.Minute, func(ctx context.Context) error {
		text, err := c.kubectl(ctx, "", "get", "--raw", "/api/v1/nodes/"+nodeName+"/proxy/stats/summary")
		if err != nil {
			return err
		}
		var summary struct {
			Pods []struct {
				Containers []struct {
					Memory struct{ WorkingSetBytes uint64 }
				}
			}
		}
		if err := json.Unmarshal([]byte(text), &summary); err != nil {
			return err
		}
		pods = len(summary.Pods)
		if pods == 0 || len(summary.Pods[0].Containers) == 0 || summary.Pods[0].Containers[0].Memory.WorkingSetBytes == 0 {
			return fmt.Errorf("the summary has %d pods, want some with memory of their containers", pods)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	metrics, err := c.kubectl(ctx, "", "get", "--raw", "/api/v1/nodes/"+nodeName+"/proxy/metrics/cadvisor")
	for _, want := range []string{"container_cpu_usage_seconds_total{", "container_memory_working_set_bytes{", "container_network_receive_bytes_total{"} {
		if err == nil && !strings.Contains(metrics, want) {
			err = fmt.Errorf("/metrics/cadvisor has no %s", want)
		}
	}
	return fmt.Sprintf("summary of %d pods; series of CPU, memory and network", pods), err
}
