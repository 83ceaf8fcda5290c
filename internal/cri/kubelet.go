package cri

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// kubeletPrograms are the programs that contain a kubelet: its own, that of k3s and that of MicroK8s.
var kubeletPrograms = []string{"kubelet", "k3s", "kubelite", "hyperkube"}

// clients is a listener that recognizes a kubelet among its clients by its program.
type clients struct {
	net.Listener
	sawKubelet func(sign string)
}

// Accept implements net.Listener.
func (c clients) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if program := programOf(conn); slices.Contains(kubeletPrograms, program) {
		c.sawKubelet("client " + program)
	}
	return conn, nil
}

// programOf returns the name of the program at the other end of a unix socket, "" if it cannot be known: its process has
// ended, or is in another PID namespace.
func programOf(conn net.Conn) string {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return ""
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return ""
	}
	var peer *unix.Ucred
	if err := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || peer == nil || peer.Pid == 0 {
		return ""
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", peer.Pid))
	if err != nil {
		return ""
	}
	return filepath.Base(program)
}
