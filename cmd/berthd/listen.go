package main

import (
	"context"
	"fmt"
	"math"
	"net"
	"os/user"
	"strconv"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/cri"
)

// listen opens the socket for clients.
func (d *daemon) listen(ctx context.Context) (net.Listener, error) {
	group, err := d.socketGroup()
	if err != nil {
		return nil, err
	}
	return cri.Listen(ctx, d.cfg.Listen, group)
}

// socketGroup is the number of the group that may connect, -1 for none.
func (d *daemon) socketGroup() (int, error) {
	name := d.cfg.ListenGroup
	if name == "" {
		return -1, nil
	}
	if id, err := strconv.ParseUint(name, 10, 32); err == nil && id < math.MaxUint32 {
		return int(id), nil
	}
	group, err := user.LookupGroup(name)
	if err != nil {
		return 0, config.At(d.file, fmt.Sprintf("%q: this host has no such group: %v", name, err), "listen_group")
	}
	return strconv.Atoi(group.Gid)
}
