// Demo is the program behind `make demo`: it shows on this machine, with real programs and in a few seconds, what Berth
// does for a pod, and how long each step takes. It needs no network: it serves the image itself. Whatever it makes is
// gone when it ends.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	bin := flag.String("bin", "bin", "directory of berthd, berth-shim and berth")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	if err := run(ctx, *bin); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		cancel()
		os.Exit(1)
	}
}
