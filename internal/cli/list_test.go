package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

func TestPods(t *testing.T) {
	newCanned().berth(t, "pods").want(t, 0, `
POD ID         NAMESPACE   NAME   STATE   AGE     IP          RUNTIME
a1a1a1a1a1a1   shop        web    ready   1m30s   10.85.0.7   (default)
a1b222222222   shop        db     ready   3h      host        runc
`)
	newCanned().berth(t, "pods", "-a", "-n", "test").want(t, 0, `
POD ID         NAMESPACE   NAME   STATE      AGE   IP   RUNTIME
d4d4d4d4d4d4   test        old    notready   3d    -    (default)
`)
	newCanned().berth(t, "pods", "-q", "-l", "tier=front").want(t, 0, idWeb)
}

func TestPs(t *testing.T) {
	newCanned().berth(t, "ps").want(t, 0, `
CONTAINER ID   NAME       POD        STATE     AGE     RESTARTS   IMAGE
c2c2c2c2c2c2   sidecar    shop/web   running   1m10s   2          registry.example/pg:16
c1c1c1c1c1c1   nginx      shop/web   running   1m20s   0          docker.io/library/nginx:1.27
e5e5e5e5e5e5   postgres   shop/db    running   2h      1          registry.example/pg:16
`)
	newCanned().berth(t, "ps", "-a", "--pod", "db").want(t, 0, `
CONTAINER ID   NAME       POD       STATE                    AGE   RESTARTS   IMAGE
e5e5e5e5e5e5   postgres   shop/db   running                  2h    1          registry.example/pg:16
e6e6e6e6e6e6   postgres   shop/db   exited (137) OOMKilled   3h    0          registry.example/pg:16
`)
	newCanned().berth(t, "ps", "-q", "-l", "app=nginx").want(t, 0, idNginx)
}

func TestImages(t *testing.T) {
	newCanned().berth(t, "images").want(t, 0, `
REPOSITORY                TAG      IMAGE ID       SIZE      PINNED
docker.io/library/nginx   1.27     111111111111   54.3 MB   
registry.example/pg       16       222222222222   999 B     yes
registry.example/pg       latest   222222222222   999 B     yes
`)
	newCanned().berth(t, "images", "nginx", "-q").want(t, 0, imgNginx)
	newCanned().berth(t, "images", "2222", "-q").want(t, 0, imgPG)
}

// The names in JSON and YAML are a promise to scripts.
func TestStructuredOutput(t *testing.T) {
	got := newCanned().berth(t, "ps", "-a", "-o", "json", "--pod", "db")
	var containers []containerItem
	if err := json.Unmarshal([]byte(got.out), &containers); err != nil || len(containers) != 2 {
		t.Fatalf("JSON (%v):\n%s", err, got.out)
	}
	for _, want := range []string{
		`"id": "` + idPGOld + `"`, `"state": "exited"`, `"exitCode": 137`, `"reason": "OOMKilled"`,
		`"createdAt": "2026-05-01T09:00:00Z"`, `"startedAt": null`, `"imageId": "` + imgPG + `"`, `"namespace": "shop"`,
	} {
		if !strings.Contains(got.out, want) {
			t.Errorf("JSON has no %s:\n%s", want, got.out)
		}
	}
	got = newCanned().berth(t, "pods", "-o", "yaml")
	var pods []podItem
	if err := yaml.Unmarshal([]byte(got.out), &pods); err != nil || len(pods) != 2 {
		t.Fatalf("YAML (%v):\n%s", err, got.out)
	}
	if pods[0].IPs[1] != "fd62::7" || pods[0].CreatedAt == nil {
		t.Errorf("pod in YAML reads back as %+v", pods[0])
	}
	empty := &canned{}
	empty.berth(t, "pods", "-o", "json").want(t, 0, "[]")
	empty.berth(t, "images", "-o", "yaml").want(t, 0, "[]")
	newCanned().berth(t, "pods", "-o", "xml").complains(t, exitUsage, `--output "xml": want table, json or yaml`)
}

func TestInspect(t *testing.T) {
	got := newCanned().berth(t, "inspect", "web")
	for _, want := range []string{`"kind": "pod"`, `"ip": "10.85.0.7"`, `"kind": "builtin"`, `"note": "plain"`, `"state": "SANDBOX_READY"`} {
		if !strings.Contains(got.out, want) {
			t.Errorf("inspect has no %s:\n%s", want, got.out)
		}
	}
	got = newCanned().berth(t, "inspect", "-o", "yaml", "c1", "nginx:1.27", "nothing")
	got.complains(t, 1, `no pod, container or image "nothing"`, "berth images")
	for _, want := range []string{"- info: {}", "kind: container", "kind: image"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("inspect has no %s:\n%s", want, got.out)
		}
	}
}

func TestVersion(t *testing.T) {
	got := newCanned().berth(t, "version")
	if !strings.Contains(got.out, "canned 1.2.3") || got.code != 0 {
		t.Errorf("version says (%d)\n%s%s", got.code, got.out, got.err)
	}
	got = berth(t, "--endpoint", "/nowhere/berth.sock", "version")
	got.complains(t, 1, "connect to unix:///nowhere/berth.sock: no such file or directory", "Is the runtime running")
	if !strings.Contains(got.out, "Client:") {
		t.Errorf("without a runtime, version says nothing about itself:\n%s", got.out)
	}
}

func TestFind(t *testing.T) {
	c := &inventory{pods: newCanned().pods, containers: newCanned().containers}
	// As `berth run --name solo` makes them.
	c.pods = append(c.pods, &runtimeapi.PodSandbox{Id: "f0f0", Metadata: &runtimeapi.PodSandboxMetadata{Name: "solo", Namespace: "default"}})
	c.containers = append(c.containers, &runtimeapi.Container{Id: "f1f1", PodSandboxId: "f0f0", Metadata: &runtimeapi.ContainerMetadata{Name: "solo"}})
	for _, tc := range []struct{ word, want string }{
		{"web", idWeb}, {"shop/web", idWeb}, {"a1a", idWeb}, {idDB, idDB}, {"c1", idNginx}, {"web/nginx", idNginx},
		{"postgres", idPG}, {"e6", idPGOld}, {"solo", "f0f0"}, {"f1", "f1f1"}, {"solo/solo", "f1f1"},
	} {
		got, err := c.find(tc.word)
		if err != nil || got.id() != tc.want {
			t.Errorf("find(%q) = %s (%v), want %s", tc.word, got.id(), err, tc.want)
		}
	}
	for _, tc := range []struct{ word, want string }{
		{"a1", `"a1" is ambiguous:`}, {"c", "is ambiguous"}, {"zz", `no pod or container "zz"`}, {"", "the ID is empty"},
	} {
		if _, err := c.find(tc.word); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("find(%q) gives error %v, want %s", tc.word, err, tc.want)
		}
	}
	for _, tc := range []struct{ word, want string }{
		{"db", idPG}, {"solo", "f1f1"}, {"nginx", idNginx}, {"c2", idSidecar}, {"f0", "f1f1"},
	} {
		got, err := c.findContainer(tc.word)
		if err != nil || got.Id != tc.want {
			t.Errorf("findContainer(%q) = %s (%v), want %s", tc.word, got.GetId(), err, tc.want)
		}
	}
	for _, tc := range []struct{ word, want string }{
		{"web", "pod shop/web has 2 containers: nginx, sidecar"}, {"old", "pod test/old has no container"},
		{"nope", `no container "nope"`}, {"c", "is ambiguous"},
	} {
		if _, err := c.findContainer(tc.word); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("findContainer(%q) gives error %v, want %s", tc.word, err, tc.want)
		}
	}
}

func TestAge(t *testing.T) {
	a := &app{now: func() time.Time { return epoch }}
	for _, tc := range []struct {
		d    time.Duration
		want string
	}{
		{-time.Second, "0s"}, {59 * time.Second, "59s"}, {61 * time.Second, "1m1s"}, {11*time.Minute + 5*time.Second, "11m"},
		{2*time.Hour + 5*time.Minute, "2h5m"}, {30 * time.Hour, "30h"}, {49 * time.Hour, "2d1h"}, {400 * 24 * time.Hour, "400d"},
	} {
		then := epoch.Add(-tc.d)
		if got := a.age(&then); got != tc.want {
			t.Errorf("age of %v is %s, want %s", tc.d, got, tc.want)
		}
	}
}

// What a pod is called must not move the terminal's cursor.
func TestTableIsHarmless(t *testing.T) {
	c := newCanned()
	c.pods[0].Metadata.Name = "evil\x1b[2J\nname"
	if out := c.berth(t, "pods").out; strings.Contains(out, "\x1b") || strings.Count(out, "\n") != 3 {
		t.Errorf("table carries control characters: %q", out)
	}
}
