//go:build !race

package shim_test

// buildFlags are those of a program without the race detector.
var buildFlags []string
