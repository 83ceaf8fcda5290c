package network

import (
	"os"
	"path/filepath"
)

// kubeletFile below the root of the network says that a kubelet uses this node.
const kubeletFile = "kubelet"

// SawKubelet notes, for good, that a kubelet uses this node. From then on the node is ready only with a CNI configuration if
// the built-in network is chosen automatically: a pod that comes before the network's DaemonSet would stay in the wrong
// network. Pods that no kubelet has made still get the built-in network. sign says what has shown it.
func (m *Manager) SawKubelet(sign string) {
	m.mu.Lock()
	known := m.kubelet
	m.kubelet = true
	m.mu.Unlock()
	if known {
		return
	}
	m.log.Info("kubelet recognized", "sign", sign)
	if err := os.WriteFile(filepath.Join(m.options.Root, kubeletFile), []byte(sign+"\n"), 0o600); err != nil {
		m.log.Warn("kubelet not recorded: it must be recognized again after a restart", "error", err)
	}
}

func kubeletKnown(root string) bool {
	_, err := os.Stat(filepath.Join(root, kubeletFile))
	return err == nil
}
