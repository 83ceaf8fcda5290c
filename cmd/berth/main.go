// Command berth is the command line for people: it runs and looks at pods,
// containers and images through the socket of a CRI runtime.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/berth-runtime/berth/internal/cli"
)

func main() {
	// The reader of our output may leave before we are done; commands that made
	// something then still have to clean up.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := cli.Main(ctx, os.Args[1:], cli.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}
