package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxCandidates is how many objects an ambiguous name lists.
const maxCandidates = 8

// target is what a word on the command line stands for: a container, a pod or
// an image.
type target struct {
	container *runtimeapi.Container
	pod       *runtimeapi.PodSandbox
	image     *runtimeapi.Image
}

func (t target) id() string {
	switch {
	case t.container != nil:
		return t.container.Id
	case t.pod != nil:
		return t.pod.Id
	}
	return t.image.GetId()
}

// kind is the word for what it is.
func (t target) kind() string {
	switch {
	case t.container != nil:
		return "container"
	case t.pod != nil:
		return "pod"
	}
	return "image"
}

func (t target) name() string {
	switch {
	case t.container != nil:
		return t.container.Metadata.GetName()
	case t.pod != nil:
		return t.pod.Metadata.GetNamespace() + "/" + t.pod.Metadata.GetName()
	}
	return strings.Join(t.image.GetRepoTags(), " ")
}

// inventory is every pod and container, to look things up in.
type inventory struct {
	pods       []*runtimeapi.PodSandbox
	containers []*runtimeapi.Container
}

func (n *node) inventory(ctx context.Context) (*inventory, error) {
	pods, err := n.pods(ctx)
	if err != nil {
		return nil, err
	}
	containers, err := n.containers(ctx)
	if err != nil {
		return nil, err
	}
	return &inventory{pods: pods, containers: containers}, nil
}

func (c *inventory) podOf(container *runtimeapi.Container) *runtimeapi.PodSandbox {
	for _, p := range c.pods {
		if p.Id == container.PodSandboxId {
			return p
		}
	}
	return nil
}

// containersOf returns the containers of a pod, newest first.
func (c *inventory) containersOf(pod string) []*runtimeapi.Container {
	var out []*runtimeapi.Container
	for _, ctr := range c.containers {
		if ctr.PodSandboxId == pod {
			out = append(out, ctr)
		}
	}
	return out
}

// matches returns what word may stand for. A whole ID beats a name, a name
// beats the beginning of an ID. Of the attempts of one container, the newest
// is meant.
func (c *inventory) matches(word string) []target {
	var names, prefixes []target
	for _, p := range c.pods {
		t := target{pod: p}
		switch name := p.Metadata.GetName(); {
		case p.Id == word:
			return []target{t}
		case name == word || p.Metadata.GetNamespace()+"/"+name == word:
			names = append(names, t)
		case strings.HasPrefix(p.Id, word):
			prefixes = append(prefixes, t)
		}
	}
	newest := map[string]bool{}
	for _, ctr := range c.containers {
		t := target{container: ctr}
		name := ctr.Metadata.GetName()
		key := ctr.PodSandboxId + "/" + name
		switch {
		case ctr.Id == word:
			return []target{t}
		case (name == word || c.podOf(ctr).GetMetadata().GetName()+"/"+name == word) && !newest[key]:
			newest[key] = true
			names = append(names, t)
		case strings.HasPrefix(ctr.Id, word):
			prefixes = append(prefixes, t)
		}
	}
	if len(names) > 0 {
		return names
	}
	return prefixes
}

// findContainer returns the container that word stands for. The name or ID of a
// pod stands for its only container.
func (c *inventory) findContainer(word string) (*runtimeapi.Container, error) {
	if word == "" {
		return nil, errors.New("the ID of a container is empty")
	}
	all := c.matches(word)
	var found []target
	for _, t := range all {
		if t.container != nil {
			found = append(found, t)
		}
	}
	if len(found) == 0 && len(all) == 1 {
		return c.onlyContainer(all[0].pod)
	}
	switch len(found) {
	case 1:
		return found[0].container, nil
	case 0:
		return nil, &hintedError{err: fmt.Errorf("no container %q", word), next: "List containers with: berth ps -a"}
	}
	return nil, c.ambiguous(word, found)
}

func (c *inventory) onlyContainer(pod *runtimeapi.PodSandbox) (*runtimeapi.Container, error) {
	containers := c.containersOf(pod.Id)
	var running []*runtimeapi.Container
	for _, ctr := range containers {
		if ctr.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running = append(running, ctr)
		}
	}
	name := target{pod: pod}.name()
	switch {
	case len(containers) == 0:
		return nil, fmt.Errorf("pod %s has no container", name)
	case len(containers) == 1:
		return containers[0], nil
	case len(running) == 1:
		return running[0], nil
	}
	names := make([]string, len(containers))
	for i, ctr := range containers {
		names[i] = ctr.Metadata.GetName()
	}
	return nil, &hintedError{
		err:  fmt.Errorf("pod %s has %d containers: %s", name, len(containers), strings.Join(names, ", ")),
		next: fmt.Sprintf("Name one, for example: %s/%s", pod.Metadata.GetName(), names[0]),
	}
}

// previous returns the attempt before this one of a container that restarts.
func (c *inventory) previous(of *runtimeapi.Container) (*runtimeapi.Container, error) {
	var found *runtimeapi.Container
	for _, ctr := range c.containersOf(of.PodSandboxId) {
		attempt := ctr.Metadata.GetAttempt()
		if ctr.Metadata.GetName() == of.Metadata.GetName() && attempt < of.Metadata.GetAttempt() &&
			attempt >= found.GetMetadata().GetAttempt() {
			found = ctr
		}
	}
	if found == nil {
		return nil, fmt.Errorf("container %s (%s) has no previous instance: it was not restarted, or the previous one was removed",
			short(of.Id), of.Metadata.GetName())
	}
	return found, nil
}

// find returns the pod or container that word stands for. A pod and its
// container may share a name, as `berth run` makes them; the pod is meant then.
func (c *inventory) find(word string) (target, error) {
	if word == "" {
		return target{}, errors.New("the ID is empty")
	}
	found := c.matches(word)
	var pods []target
	for _, t := range found {
		if t.pod != nil {
			pods = append(pods, t)
		}
	}
	switch {
	case len(found) == 0:
		return target{}, &hintedError{
			err:  fmt.Errorf("no pod or container %q", word),
			next: "See what there is with: berth pods; berth ps -a",
		}
	case len(found) == 1:
		return found[0], nil
	case len(pods) == 1 && c.within(found, pods[0].pod.Id):
		return pods[0], nil
	}
	return target{}, c.ambiguous(word, found)
}

// within says whether everything found is the pod or in it.
func (c *inventory) within(found []target, pod string) bool {
	for _, t := range found {
		if t.container != nil && t.container.PodSandboxId != pod || t.pod != nil && t.pod.Id != pod {
			return false
		}
	}
	return true
}

// ambiguous names what a word may stand for.
func (c *inventory) ambiguous(word string, found []target) error {
	var lines []string
	for i, t := range found {
		if i == maxCandidates {
			lines = append(lines, fmt.Sprintf("  and %d more", len(found)-i))
			break
		}
		line := fmt.Sprintf("  %s  %s %s", t.id(), t.kind(), t.name())
		if t.container != nil {
			line += " of pod " + target{pod: c.podOf(t.container)}.name()
		}
		lines = append(lines, line)
	}
	return &hintedError{
		err:  fmt.Errorf("%q is ambiguous:\n%s", word, strings.Join(lines, "\n")),
		next: "Give more of the ID, or NAMESPACE/POD, or POD/CONTAINER.",
	}
}

// findPod returns the pod that word stands for.
func (c *inventory) findPod(word string) (*runtimeapi.PodSandbox, error) {
	var found []target
	for _, t := range c.matches(word) {
		if t.pod != nil {
			found = append(found, t)
		}
	}
	switch len(found) {
	case 1:
		return found[0].pod, nil
	case 0:
		return nil, &hintedError{err: fmt.Errorf("no pod %q", word), next: "List pods with: berth pods -a"}
	}
	return nil, c.ambiguous(word, found)
}
