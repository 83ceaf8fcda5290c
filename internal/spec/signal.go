package spec

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	defaultStopSignal = "SIGTERM"

	// The real-time signals as the C libraries number them; the kernel's
	// first two are theirs.
	rtMin = 34
	rtMax = 64

	enumPrefix = "SIGNAL_"
)

// aliases are the second names that CRI has for some signals.
var aliases = map[string]string{"SIGCLD": "SIGCHLD", "SIGIOT": "SIGABRT", "SIGPOLL": "SIGIO"}

// SignalNumber returns the signal with the given name ("SIGTERM", "term",
// "15", "SIGRTMIN+3").
func SignalNumber(name string) (syscall.Signal, error) {
	text := strings.ToUpper(strings.TrimSpace(name))
	if number, err := strconv.Atoi(text); err == nil {
		if number < 1 || number > rtMax {
			return 0, invalid("signal", name, fmt.Sprintf("must be between 1 and %d", rtMax))
		}
		return syscall.Signal(number), nil
	}
	if !strings.HasPrefix(text, "SIG") {
		text = "SIG" + text
	}
	if alias, ok := aliases[text]; ok {
		text = alias
	}
	if number := unix.SignalNum(text); number != 0 {
		return number, nil
	}
	for _, base := range []struct {
		name   string
		number int
	}{{"SIGRTMIN", rtMin}, {"SIGRTMAX", rtMax}} {
		rest, ok := strings.CutPrefix(text, base.name)
		if !ok {
			continue
		}
		offset, err := parseOffset(rest)
		if number := base.number + offset; err == nil && number >= rtMin && number <= rtMax {
			return syscall.Signal(number), nil
		}
	}
	return 0, invalid("signal", name, "is unknown")
}

// parseOffset reads "", "+3" or "-3".
func parseOffset(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	if text[0] != '+' && text[0] != '-' {
		return 0, strconv.ErrSyntax
	}
	return strconv.Atoi(text)
}

// SignalName returns the usual name of a signal.
func SignalName(signal syscall.Signal) string {
	number := int(signal)
	switch {
	case number == rtMin:
		return "SIGRTMIN"
	case number == rtMax:
		return "SIGRTMAX"
	case number > rtMin && number <= rtMin+15:
		return fmt.Sprintf("SIGRTMIN+%d", number-rtMin)
	case number > rtMin && number < rtMax:
		return fmt.Sprintf("SIGRTMAX-%d", rtMax-number)
	}
	if name := unix.SignalName(signal); name != "" {
		return name
	}
	return strconv.Itoa(number)
}

// SignalEnum returns the CRI value of a signal name, for ContainerStatus;
// SIGNAL_RUNTIME_DEFAULT if CRI has none for it.
func SignalEnum(name string) runtimeapi.Signal {
	signal, err := SignalNumber(name)
	if err != nil {
		return runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT
	}
	key := strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(SignalName(signal))
	return runtimeapi.Signal(runtimeapi.Signal_value[enumPrefix+key])
}

// stopSignal chooses the stop signal: the request's, the image's, SIGTERM. A
// value of the request that is newer than this program, and one of the image
// that makes no sense, do not keep the container from running.
func stopSignal(in Input) string {
	if asked := in.Config.GetStopSignal(); asked != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		key := strings.TrimPrefix(runtimeapi.Signal_name[int32(asked)], enumPrefix)
		key = strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(key)
		if signal, err := SignalNumber(key); err == nil {
			return SignalName(signal)
		}
		in.warnings.Add("stop_signal", int32(asked), "is unknown and ignored")
	}
	if in.Image.StopSignal != "" {
		signal, err := SignalNumber(in.Image.StopSignal)
		if err == nil {
			return SignalName(signal)
		}
		in.warnings.Add("StopSignal of the image", in.Image.StopSignal, "is unknown; "+defaultStopSignal+" is used")
	}
	return defaultStopSignal
}
