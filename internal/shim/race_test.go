//go:build race

package shim_test

// buildFlags make the program under test watch itself, too.
var buildFlags = []string{"-race"}
