package integration

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/refusals"
)

// change merges a patch into a message, by the names of the CRI.
func change(t *testing.T, m proto.Message, patch string) {
	t.Helper()
	have, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	changed, err := refusals.Apply(have, []byte(patch))
	if err != nil {
		t.Fatal(err)
	}
	proto.Reset(m)
	if err := protojson.Unmarshal(changed, m); err != nil {
		t.Fatalf("%s: %v", patch, err)
	}
}

// caller calls methods of the CRI by name.
type caller struct {
	t    *testing.T
	n    *harness.Node
	conn *grpc.ClientConn
}

func newCaller(t *testing.T, n *harness.Node) caller {
	conn, err := grpc.NewClient(n.Config.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return caller{t, n, conn}
}

// call sends a request to the method of that name.
func (c caller) call(name string, in proto.Message) error {
	for _, service := range []protoreflect.FullName{"runtime.v1.RuntimeService", "runtime.v1.ImageService"} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(service)
		if err != nil {
			c.t.Fatal(err)
		}
		if method := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(name)); method != nil {
			return c.conn.Invoke(c.n.Context(), "/"+string(service)+"/"+name, in, dynamicpb.NewMessage(method.Output()))
		}
	}
	c.t.Fatalf("no method %s", name)
	return nil
}

// TestRefusals: each request that docs/cri-support.md lists as refused is refused by the daemon with that code and that
// field, and nothing of it is left. Without the change it is accepted.
func TestRefusals(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	c := p.Start([]string{"sleep", "1000"})
	calls := newCaller(t, n)
	request := func(r refusals.Refusal, patch string) proto.Message {
		switch r.Call {
		case "RunPodSandbox":
			config := n.PodConfig()
			change(t, config, patch)
			return &runtimeapi.RunPodSandboxRequest{Config: config}
		case "CreateContainer":
			config := n.ContainerConfig([]string{"true"})
			change(t, config, patch)
			return &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config}
		}
		m := map[string]proto.Message{
			"ExecSync": &runtimeapi.ExecSyncRequest{ContainerId: c.ID}, "Exec": &runtimeapi.ExecRequest{ContainerId: c.ID},
			"PortForward": &runtimeapi.PortForwardRequest{PodSandboxId: p.ID}, "PullImage": &runtimeapi.PullImageRequest{},
			"UpdateContainerResources": &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID},
		}[r.Call]
		if m == nil {
			t.Fatalf("line %d: no request for %s", r.Line, r.Call)
		}
		change(t, m, patch)
		return m
	}
	list, _, err := refusals.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if err := calls.call(r.Call, request(r, r.Patch)); err == nil {
			t.Errorf("refusals.txt:%d: %s %.200s is accepted", r.Line, r.Call, r.Patch)
		} else if status.Code(err) != r.Code || !strings.Contains(err.Error(), r.Words) {
			t.Errorf("refusals.txt:%d: %s %.200s: got %v, want %v and %q", r.Line, r.Call, r.Patch, err, r.Code, r.Words)
		}
	}
	if pods, left := sandboxes(t, n, nil), containers(t, n, nil); len(pods) != 1 || len(left) != 1 {
		t.Errorf("after the refusals there are %d pods and %d containers, want one of each", len(pods), len(left))
	}
	for _, name := range []string{"RunPodSandbox", "CreateContainer"} {
		if err := calls.call(name, request(refusals.Refusal{Call: name}, "{}")); err != nil {
			t.Errorf("%s without a change: %v", name, err)
		}
	}
}
