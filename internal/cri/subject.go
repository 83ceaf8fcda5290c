package cri

import (
	"fmt"
	"log/slog"

	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// subject is what a call is about, as far as its request and the engine tell.
type subject struct {
	sandboxID, containerID string
	namespace, pod, uid    string
	container              string
	image                  string
}

// subjectOf reads the subject out of a request; nil is a request of a stream,
// which is about nothing in particular.
func subjectOf(req any) *subject {
	about := &subject{}
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		about.sandboxID = r.GetPodSandboxId()
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		about.containerID = r.GetContainerId()
	}
	if r, ok := req.(interface{ GetImage() *runtimeapi.ImageSpec }); ok {
		about.image = r.GetImage().GetImage()
	}
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		about.ofPod(r.GetConfig().GetMetadata())
	case *runtimeapi.RestorePodRequest:
		about.ofPod(r.GetConfig().GetMetadata())
	case *runtimeapi.CreateContainerRequest:
		about.ofPod(r.GetSandboxConfig().GetMetadata())
		about.container = r.GetConfig().GetMetadata().GetName()
	}
	return about
}

func (a *subject) ofPod(m *runtimeapi.PodSandboxMetadata) {
	a.namespace, a.pod, a.uid = m.GetNamespace(), m.GetName(), m.GetUid()
}

// lookUp completes the subject by what the engine knows of its IDs.
func (a *subject) lookUp(e Engine) {
	if a.containerID != "" && a.container == "" {
		if c, err := e.Container(a.containerID); err == nil {
			a.container = c.Config.GetMetadata().GetName()
			a.sandboxID = c.SandboxID
		}
	}
	if a.sandboxID != "" && a.pod == "" {
		if s, err := e.Sandbox(a.sandboxID); err == nil {
			a.ofPod(s.Config.GetMetadata())
		}
	}
}

// explain adds to an error the pod and container that it does not name itself.
// They come last: kubelet looks at how the text of an error begins.
func (a *subject) explain(err error) error {
	s := status.Convert(err)
	text := s.Message()
	if a.container != "" && !containsAny(text, a.container, a.containerID) {
		text += fmt.Sprintf(" (container %s)", a.container)
	}
	if a.pod != "" && !containsAny(text, a.pod, a.sandboxID) {
		text += fmt.Sprintf(" (pod %s/%s)", a.namespace, a.pod)
	}
	if text == s.Message() {
		return err
	}
	return status.Error(s.Code(), text)
}

// attributes are the subject in a log line.
func (a *subject) attributes() []slog.Attr {
	var known []slog.Attr
	add := func(key, value string) {
		if value != "" {
			known = append(known, slog.String(key, value))
		}
	}
	if a.pod != "" {
		add("pod", a.namespace+"/"+a.pod)
	}
	add("uid", a.uid)
	add("sandbox", a.sandboxID)
	add("container", a.container)
	add("id", a.containerID)
	add("image", a.image)
	return known
}
