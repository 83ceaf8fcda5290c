package shim_test

import (
	"context"
	"fmt"
	"os"

	"github.com/berth-runtime/berth/internal/shim"
)

// runClient is what the test binary does as a client to be killed: it connects and waits.
func runClient(state string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := shim.Connect(ctx, shim.Options{State: state, Binary: os.Getenv("BERTH_SHIM_BINARY"), Instance: os.Getenv("BERTH_SHIM_INSTANCE")})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("connected")
	select {}
}
