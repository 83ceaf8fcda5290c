package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// nftTimeout bounds one answer of nftables. A transaction takes less than a millisecond unless one of another program is
	// being committed.
	nftTimeout = 10 * time.Second
	// maxElements is how many set elements go into one message; its attribute holds 64 KiB.
	maxElements = 128
)

// firewall is the nftables table of a daemon: host ports as elements of maps, and what must be masqueraded. Adding or
// removing a pod is one transaction of elements, its cost does not depend on how many pods there are. The whole table can be
// restored from the lease store in one transaction too, which is what happens at the first use, and whenever another program flushed
// it.
type firewall struct {
	table  string
	bridge string
	leases *leaseStore

	mu    sync.Mutex
	built bool    // this process has made the table, so it is of this version
	nets  subnets // of the built-in network, nil while it is not in use

	// The connection is kept: closing a netfilter socket waits until the kernel has destroyed what the last transaction
	// took away, which is a grace period of RCU (nft_rcv_nl_event).
	conn   *nftables.Conn
	socket *mdnetlink.Conn
}

// serve makes the subnets of the built-in network reach the outside, and the table exist.
func (f *firewall) serve(nets subnets) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.nets, nets) {
		f.nets, f.built = nets, false
	}
	return f.ensure()
}

// publish opens the host ports of a lease, all or none.
func (f *firewall) publish(l *lease) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.ensure(); err != nil {
		return err
	}
	if err := f.change((*nftables.Conn).SetAddElements, l); err != nil {
		return fmt.Errorf("open host ports of pod %s: %w", l.Pod, err)
	}
	return nil
}

// withdraw closes the host ports of a lease. Ports that are not open are no error.
func (f *firewall) withdraw(l *lease) error {
	if !l.Published || len(l.Ports) == 0 {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	there, err := f.exists()
	if err != nil || !there {
		return err
	}
	err = f.change((*nftables.Conn).SetDeleteElements, l)
	if errors.Is(err, unix.ENOENT) {
		// One of them is not there, so the transaction took none away: make the table as it should be.
		err = f.rebuild(l.ID)
	}
	if err != nil {
		return fmt.Errorf("close host ports of pod %s: %w", l.Pod, err)
	}
	return nil
}

// restore makes the table what the lease store says, if there is anything in it.
func (f *firewall) restore() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rebuild("")
}

// remove deletes the table.
func (f *firewall) remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.built = false
	there, err := f.exists()
	if err != nil || !there {
		return err
	}
	err = f.transact(func(conn *nftables.Conn) error {
		conn.DelTable(&nftables.Table{Name: f.table, Family: nftables.TableFamilyINet})
		return conn.Flush()
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete nftables table %s: %w", f.table, err)
	}
	return nil
}

// transact runs fn on the connection, which fn leaves without anything that is not flushed. Preconditions: f.mu is held.
func (f *firewall) transact(fn func(*nftables.Conn) error) error {
	if f.conn == nil {
		conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
			f.socket = c
			return nil
		}))
		if err != nil {
			return fmt.Errorf("connect to nftables: %w", err)
		}
		f.conn = conn
	}
	err := f.socket.SetDeadline(time.Now().Add(nftTimeout))
	if err == nil {
		err = fn(f.conn)
	}
	if err != nil {
		// What was queued and answers that were not read would be taken for those of the next transaction.
		return errors.Join(err, f.disconnect())
	}
	return nil
}

// disconnect closes the connection. Preconditions: f.mu is held.
func (f *firewall) disconnect() error {
	if f.conn == nil {
		return nil
	}
	conn := f.conn
	f.conn, f.socket = nil, nil
	if err := conn.CloseLasting(); err != nil {
		return fmt.Errorf("disconnect from nftables: %w", err)
	}
	return nil
}

// exists reports whether the table is there. Preconditions: f.mu is held.
func (f *firewall) exists() (bool, error) {
	err := f.transact(func(conn *nftables.Conn) error {
		_, err := conn.ListTableOfFamily(f.table, nftables.TableFamilyINet)
		return err
	})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up nftables table %s: %w", f.table, err)
	}
	return true, nil
}

// ensure makes the table unless it is there. Preconditions: f.mu is held.
func (f *firewall) ensure() error {
	if f.built {
		there, err := f.exists()
		if err != nil || there {
			return err
		}
	}
	return f.rebuild("")
}

// rebuild replaces the table by one that holds every published lease but one. Connections that are established keep their
// translation, and there is no moment without rules. Preconditions: f.mu is held.
func (f *firewall) rebuild(without string) error {
	leases := slices.DeleteFunc(f.leases.all(), func(l *lease) bool { return l.ID == without })
	table := &nftables.Table{Name: f.table, Family: nftables.TableFamilyINet}
	sets := newPortSets(table)
	err := f.transact(func(conn *nftables.Conn) error {
		conn.AddTable(table) // so that there is one to delete
		conn.DelTable(table)
		conn.AddTable(table)
		if err := sets.create(conn); err != nil {
			return err
		}
		addRules(conn, table, sets, f.bridge, f.masqueraded(leases))
		for _, l := range leases {
			if err := sets.each(l, conn.SetAddElements); err != nil {
				return err
			}
		}
		return conn.Flush()
	})
	if err != nil {
		return fmt.Errorf("make nftables table %s: %w", f.table, err)
	}
	f.built = true
	return nil
}

// masqueraded lists the subnets whose pods need an address of the host to go outside: the present ones, and those of pods
// that were connected before the configuration changed.
func (f *firewall) masqueraded(leases []*lease) []netip.Prefix {
	nets := slices.Clone([]netip.Prefix(f.nets))
	for _, l := range leases {
		for _, address := range l.Addresses {
			if net := address.Masked(); l.Network == Builtin && !slices.Contains(nets, net) {
				nets = append(nets, net)
			}
		}
	}
	return nets
}

// change applies one transaction to the elements of a lease. Preconditions: f.mu is held.
func (f *firewall) change(apply func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error, l *lease) error {
	sets := newPortSets(&nftables.Table{Name: f.table, Family: nftables.TableFamilyINet})
	return f.transact(func(conn *nftables.Conn) error {
		if err := sets.each(l, func(s *nftables.Set, e []nftables.SetElement) error { return apply(conn, s, e) }); err != nil {
			return err
		}
		return conn.Flush()
	})
}

// close gives the connection back.
func (f *firewall) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.disconnect()
}
