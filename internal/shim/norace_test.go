//go:build !race

package shim_test

// raceDetector tells that the program under test has the race detector.
const raceDetector = false
