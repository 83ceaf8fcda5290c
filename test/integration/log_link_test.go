package integration

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestPlantedLogs: a container that sees the log directory of its pod plants links, FIFOs and devices where logs are made,
// opened again and removed. Nothing outside of the log directory changes, and nothing but a regular file is a log. The way
// to the log directory may have links.
func TestPlantedLogs(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	victim, target := filepath.Join(n.Dir(), "victim"), filepath.Join(n.Dir(), "logs-elsewhere")
	for _, err := range []error{
		os.Mkdir(victim, 0o755), os.Mkdir(target, 0o755), os.WriteFile(victim+"/file", []byte("host\n"), 0o644), os.WriteFile(victim+"/empty", nil, 0o644),
		os.Symlink(target, filepath.Join(n.Dir(), "logs")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p := n.RunPod()
	logs := p.Config.GetLogDirectory()
	attacker := p.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: logs, ContainerPath: "/logs"}, &runtimeapi.Mount{HostPath: victim, ContainerPath: "/victim", Readonly: true})
	})
	attacker.Output("sh", "-c", "cd /logs && ln -s "+victim+" dir && ln -s "+victim+"/file link.log && ln -s "+victim+"/new dangling.log && "+
		"mkfifo fifo.log && mknod device.log c 1 3 && echo other >other && ln other hard.log")
	// A FIFO with a reader does not block, and is no log either.
	fifo, err := os.OpenFile(filepath.Join(logs, "fifo.log"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := fifo.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, name := range []string{"dir/0.log", "dir/sub/0.log", "dir/file", "dir/empty", "link.log", "dangling.log", "fifo.log", "device.log", "hard.log"} {
		c, err := p.Create(n.ContainerConfig([]string{"echo", "planted"}, func(c *runtimeapi.ContainerConfig) { c.LogPath = name }))
		if err == nil {
			err = c.Start()
		}
		if err == nil {
			t.Errorf("a container with the log %s starts", name)
		}
	}

	c := p.Start([]string{"sh", "-c", "while sleep 0.05; do echo line; done"}, func(c *runtimeapi.ContainerConfig) { c.LogPath = "c/0.log" })
	n.Eventually("a line is in the log", func() error { return logHas(c, "stdout F line") })
	for _, plant := range []string{
		"mv c/0.log c/old && ln -s " + victim + "/file c/0.log", "mv c c.old && ln -s " + victim + " c",
	} {
		attacker.Output("sh", "-c", "cd /logs && "+plant)
		if _, err := n.Runtime.ReopenContainerLog(n.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID}); err == nil {
			t.Errorf("after %q the log is opened again", plant)
		}
	}
	n.KillShim() // its successor looks for the log
	n.KillDaemon()
	attacker.Output("sh", "-c", "cd /logs && rm c && mv c.old c && rm c/0.log")
	if _, err := n.Runtime.ReopenContainerLog(n.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID}); err != nil {
		t.Errorf("with the log directory as it was: %v", err)
	}
	n.Eventually("a line is in the new log", func() error { return logHas(c, "stdout F line") })

	text, err := os.ReadFile(victim + "/file")
	equal(t, "file of the host", string(text), "host\n")
	entries, listErr := os.ReadDir(victim)
	if err := errors.Join(err, listErr); err != nil || len(entries) != 2 {
		t.Errorf("outside of the log directory are %v, %v", entries, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(target+"/"+filepath.Base(logs)+"/c/0.log", &st); err != nil {
		t.Errorf("the log behind the administrator's link: %v", err)
	}
}
