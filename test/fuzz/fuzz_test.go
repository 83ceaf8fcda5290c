package fuzz

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

var (
	duration = flag.Duration("duration", time.Minute, "how long to call RPCs")
	seed     = flag.Uint64("seed", 0, "seed of the order of calls; 0 takes one from the clock")
)

const (
	// callTimeout bounds one call.
	callTimeout = 5 * time.Second
	// maxAnswer is what kubelet accepts.
	maxAnswer = 16 << 20
	// roundSize is how many calls share the live objects.
	roundSize = 400
)

// fuzzer calls RPCs of one node.
type fuzzer struct {
	t       *testing.T
	n       *harness.Node
	conn    *grpc.ClientConn
	methods []protoreflect.MethodDescriptor
	rng     *rand.Rand
	calls   map[string]int
	// valid are requests that succeed, of which one field is changed.
	valid map[protoreflect.Name]proto.Message
}

// TestCRI: no request makes the daemon or the supervisor fail. Bad input has a code that says so, answers fit into what kubelet
// accepts, and everything that was made is removed.
func TestCRI(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	conn, err := grpc.NewClient(n.Config.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", *seed)
	f := &fuzzer{t: t, n: n, conn: conn, methods: methods(), rng: rand.New(rand.NewPCG(*seed, 0)), calls: map[string]int{}}
	if len(f.methods) < 30 {
		t.Fatalf("there are %d methods, want those of both services", len(f.methods))
	}
	n.RunPod().Start([]string{"sleep", "1000"}) // starts the supervisor
	before, err := n.ShimPID()
	if err != nil || before == 0 {
		t.Fatalf("the supervisor's process is %d, %v", before, err)
	}
	for end := time.Now().Add(*duration); time.Now().Before(end); {
		f.round(end)
	}
	t.Logf("calls by method and code: %v", f.calls)
	if got := n.RunPod().Start([]string{"sleep", "1000"}).Output("echo", "hello"); got != "hello" {
		t.Errorf("a command answers %q after the calls", got)
	}
	if log := n.Log(); strings.Contains(log, "panic") || strings.Contains(log, "DATA RACE") {
		t.Error("the log of the daemon has a panic or a data race")
	}
	if after, err := n.ShimPID(); err != nil || after != before {
		t.Errorf("the supervisor's process is %d, %v, before the calls it was %d", after, err, before)
	}
}

// methods are all RPCs of the CRI.
func methods() []protoreflect.MethodDescriptor {
	var all []protoreflect.MethodDescriptor
	services := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			all = append(all, services.Get(i).Methods().Get(j))
		}
	}
	return all
}

// round makes live objects and calls methods in random order.
func (f *fuzzer) round(end time.Time) {
	p := f.n.RunPod()
	running := p.Start([]string{"sleep", "1000"})
	created, err := p.Create(f.n.ContainerConfig([]string{"true"}))
	if err != nil {
		f.t.Fatal(err)
	}
	f.valid = map[protoreflect.Name]proto.Message{
		"RunPodSandbox":   &runtimeapi.RunPodSandboxRequest{Config: f.n.PodConfig()},
		"CreateContainer": &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: f.n.ContainerConfig([]string{"true"}), SandboxConfig: p.Config},
		"PullImage":       &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: f.n.Image}, SandboxConfig: p.Config},
		"ImageStatus":     &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: f.n.Image}},
		"StartContainer":  &runtimeapi.StartContainerRequest{ContainerId: created.ID},
		"ExecSync":        &runtimeapi.ExecSyncRequest{ContainerId: running.ID, Cmd: []string{"true"}, Timeout: 2},
		"UpdateContainerResources": &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: running.ID, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100},
		},
	}
	texts := []string{"", "x", "../../x", "/", "a/b:c@d", "\x00", "line\nfeed", strings.Repeat("y", 1<<16), f.n.Image, p.ID, running.ID, created.ID}
	numbers := []int64{0, 1, 2, -1, 1 << 31, 1 << 62, -1 << 63}
	for range roundSize {
		if time.Now().After(end) {
			break
		}
		r := recipe{depth: f.rng.IntN(7) - 1, text: texts[f.rng.IntN(len(texts))], number: numbers[f.rng.IntN(len(numbers))]}
		if f.rng.IntN(2) == 0 {
			container := running.ID
			if f.rng.IntN(2) == 0 {
				container = created.ID
			}
			r.ids = map[protoreflect.Name]string{"pod_sandbox_id": p.ID, "container_id": container}
		}
		method := f.methods[f.rng.IntN(len(f.methods))]
		name := string(method.Name())
		if (strings.HasPrefix(name, "Remove") || strings.HasPrefix(name, "Stop")) && f.rng.IntN(16) != 0 {
			continue // live objects stay for some calls
		}
		f.call(method, r)
	}
	f.clean()
}

// call calls one method and checks its error.
func (f *fuzzer) call(method protoreflect.MethodDescriptor, r recipe) {
	in := newMessage(method.Input())
	if valid := f.valid[method.Name()]; valid != nil && f.rng.IntN(4) != 0 {
		in = proto.Clone(valid)
		r.change(in.ProtoReflect(), f.rng)
	} else {
		r.fill(in.ProtoReflect())
	}
	confine(in.ProtoReflect(), filepath.Join(f.n.Dir(), "logs"), f.n.Image, method.Name() == "PullImage")
	ctx, cancel := context.WithTimeout(f.t.Context(), callTimeout)
	defer cancel()
	name := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	err := f.invoke(ctx, name, method, in)
	code := status.Code(err)
	f.calls[string(method.Name())+" "+code.String()]++
	text := r.text
	if len(text) > 70 {
		text = text[:70]
	}
	switch {
	case code == codes.Unknown && !isExpected(err), code == codes.Internal, code == codes.Unavailable && ctx.Err() == nil,
		code == codes.ResourceExhausted && strings.Contains(err.Error(), "larger than max"):
		f.t.Errorf("%s of depth %d with text %q, number %d and IDs %v: %v", method.Name(), r.depth, text, r.number, r.ids, err)
	}
}

// expected are texts of errors that may have no code, with the reason.
var expected = map[string]string{
	"RegistryUnavailable": "kubelet prescribes text and code",
}

// isExpected returns whether an error without a code says nothing about the request.
func isExpected(err error) bool {
	message := status.Convert(err).Message()
	for text := range expected {
		if strings.Contains(message, text) && !strings.Contains(message, "invalid header") {
			return true
		}
	}
	return false
}

// invoke calls a method; of a stream it takes what comes within a moment.
func (f *fuzzer) invoke(ctx context.Context, name string, method protoreflect.MethodDescriptor, in proto.Message) error {
	if !method.IsStreamingServer() {
		return f.conn.Invoke(ctx, name, in, newMessage(method.Output()))
	}
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	stream, err := f.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, name)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(in); err != nil {
		return err
	}
	for err == nil {
		err = stream.RecvMsg(newMessage(method.Output()))
	}
	if err.Error() == "EOF" {
		return nil
	}
	return err
}

func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // the descriptor is of a package that is linked in
	}
	return kind.New().Interface()
}

// clean removes all pods, in any state.
func (f *fuzzer) clean() {
	pods, err := f.n.Runtime.ListPodSandbox(f.n.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, p := range pods.GetItems() {
		if _, err := f.n.Runtime.StopPodSandbox(f.n.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
			f.t.Errorf("stop pod: %v", err)
		}
		if _, err := f.n.Runtime.RemovePodSandbox(f.n.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
			f.t.Errorf("remove pod: %v", err)
		}
	}
}
