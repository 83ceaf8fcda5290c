package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// eachHandler runs a test with each OCI runtime.
func eachHandler(t *testing.T, test func(t *testing.T, n *harness.Node)) {
	t.Helper()
	for _, handler := range []string{"crun", "runc"} {
		t.Run(handler, func(t *testing.T) {
			test(t, harness.Start(t, harness.Options{Handler: handler}))
		})
	}
}

// wantError compares the code of an error, and looks for words in its text.
func wantError(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if got := status.Code(err); got != code {
		t.Errorf("error is %v (%v), want code %v", got, err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(status.Convert(err).Message(), w) {
			t.Errorf("error says %q, want it to name %q", status.Convert(err).Message(), w)
		}
	}
}

// mentions tells whether an error says all the words; if not, how it differs.
func mentions(err error, words ...string) error {
	if err == nil {
		return errors.New("there is no error")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			return fmt.Errorf("the words %q are not in: %w", w, err)
		}
	}
	return nil
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

// sandboxes lists pods by a filter.
func sandboxes(t *testing.T, n *harness.Node, filter *runtimeapi.PodSandboxFilter) []string {
	t.Helper()
	answer, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{Filter: filter})
	if err != nil {
		t.Fatalf("list pods: %v", err)
	}
	var ids []string
	for _, p := range answer.GetItems() {
		ids = append(ids, p.GetId())
	}
	return ids
}

// containers lists containers by a filter.
func containers(t *testing.T, n *harness.Node, filter *runtimeapi.ContainerFilter) []string {
	t.Helper()
	answer, err := n.Runtime.ListContainers(n.Context(), &runtimeapi.ListContainersRequest{Filter: filter})
	if err != nil {
		t.Fatalf("list containers: %v", err)
	}
	var ids []string
	for _, c := range answer.GetContainers() {
		ids = append(ids, c.GetId())
	}
	return ids
}
