package stream

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/test/leakcheck"
)

func TestTicketIsGoodForOneUseOfItsKind(t *testing.T) {
	ts := newTickets(time.Now)
	token, err := ts.issue(ticket{kind: kindExec, owner: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := ts.redeem(kindAttach, token); ok {
		t.Error("a ticket for exec was taken for attach")
	}
	if got, ok := ts.redeem(kindExec, token); !ok || got.owner != "c1" {
		t.Errorf("redeem = %+v, %v", got, ok)
	}
	if _, ok := ts.redeem(kindExec, token); ok {
		t.Error("a ticket was taken twice")
	}
}

func TestTicketExpires(t *testing.T) {
	now := time.Unix(1000, 0)
	ts := newTickets(func() time.Time { return now })
	token, err := ts.issue(ticket{kind: kindExec})
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(ticketLife)
	if _, ok := ts.redeem(kindExec, token); ok {
		t.Error("an expired ticket was taken")
	}
}

func TestTicketsAreBoundedUntilSomeExpire(t *testing.T) {
	now := time.Unix(1000, 0)
	ts := newTickets(func() time.Time { return now })
	for range maxTickets {
		if _, err := ts.issue(ticket{kind: kindExec}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ts.issue(ticket{kind: kindExec}); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("one too many: %v, want ErrResourceExhausted", err)
	}
	now = now.Add(ticketLife)
	if _, err := ts.issue(ticket{kind: kindExec}); err != nil {
		t.Errorf("after the others expired: %v", err)
	}
}

func TestGrantRefusesWhatCannotWork(t *testing.T) {
	leakcheck.Check(t)
	s := serve(t, &program{})
	for name, grant := range map[string]func() (string, error){
		"no_command":        func() (string, error) { return s.Exec("c", nil, Pipes{Stdout: true}) },
		"no_stream":         func() (string, error) { return s.Exec("c", []string{"true"}, Pipes{}) },
		"tty_and_stderr":    func() (string, error) { return s.Attach("c", Pipes{Stdout: true, Stderr: true, Terminal: true}) },
		"port_out_of_range": func() (string, error) { return s.PortForward("s", []int32{70000}) },
	} {
		if u, err := grant(); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %q, %v; want an invalid argument", name, u, err)
		}
	}
}

func TestUnknownSessionsAreNotFound(t *testing.T) {
	leakcheck.Check(t)
	s := serve(t, &program{})
	u, err := s.Exec("c1", []string{"true"}, Pipes{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if code := status(t, strings.Replace(u, "/exec/", "/attach/", 1)); code != http.StatusNotFound {
		t.Errorf("wrong kind: %d, want 404", code)
	}
	if code := status(t, u[:len(u)-1]); code != http.StatusNotFound {
		t.Errorf("wrong token: %d, want 404", code)
	}
	// A request that is no upgrade uses the ticket up and gets an error.
	if code := status(t, u); code != http.StatusBadRequest {
		t.Errorf("no upgrade: %d, want 400", code)
	}
	if code := status(t, u); code != http.StatusNotFound {
		t.Errorf("second use: %d, want 404", code)
	}
}

func TestURLsNameAnAddressThatAnswers(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.1": "127.0.0.1:10010", "0.0.0.0": "127.0.0.1:10010", "::": "[::1]:10010", "192.0.2.7": "192.0.2.7:10010",
	} {
		if got := reachable(&net.TCPAddr{IP: net.ParseIP(listen), Port: 10010}); got != want {
			t.Errorf("listening on %s: %s, want %s", listen, got, want)
		}
	}
}
