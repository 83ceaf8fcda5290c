package spec

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultTerm = "TERM=xterm"
)

// Process returns the process of an exec in a container whose first process
// is base: the same user, rights and environment, another command.
func Process(base *specs.Process, argv []string, tty bool) *specs.Process {
	process := *base
	process.Args = slices.Clone(argv)
	process.CommandLine = ""
	process.Terminal = tty
	process.ConsoleSize = nil
	process.Env = slices.Clone(base.Env)
	if tty {
		process.Env = withDefault(process.Env, defaultTerm)
	}
	return &process
}

// arguments merges command and args of the request with entry point and
// command of the image: a command of the request replaces both, args alone
// replace the command of the image.
func arguments(in Input) ([]string, error) {
	command, args := in.Config.GetCommand(), in.Config.GetArgs()
	if len(command) == 0 {
		command = in.Image.Entrypoint
		if len(command) == 1 && command[0] == "" { // how build files reset the entry point of their base
			command = nil
		}
		if len(args) == 0 {
			args = in.Image.Cmd
		}
	}
	argv := slices.Concat(command, args)
	if len(argv) == 0 {
		return nil, invalid("command", "", "must be given, since the image has neither entry point nor command")
	}
	for _, word := range argv {
		if err := checkText("command of the image", word); err != nil {
			return nil, err
		}
	}
	if argv[0] == "" {
		return nil, invalid("command[0]", "", "must not be empty")
	}
	return argv, nil
}

// environment lays the variables of the request over those of the image, and
// puts the defaults and the customary ones below both.
func environment(in Input) ([]string, error) {
	env := newEnviron([]string{defaultPath})
	if in.Config.GetTty() {
		env.set(defaultTerm)
	}
	for _, entry := range in.Defaults.env {
		env.set(entry)
	}
	env.set("HOSTNAME=" + Hostname(in.Pod, in.Host))
	for _, entry := range in.Image.Env {
		if !strings.Contains(entry, "=") {
			// Docker means by a bare name that the variable is unset.
			continue
		}
		if err := checkText("environment of the image", entry); err != nil {
			return nil, err
		}
		env.set(entry)
	}
	for _, entry := range in.Config.GetEnvs() {
		env.set(entry.GetKey() + "=" + string(entry.GetValue()))
	}
	in.apply("env", strings.Join(env.names(in.Defaults.env), " "))
	return env.entries, nil
}

// withDefault appends a variable unless it is set already.
func withDefault(env []string, entry string) []string {
	key, _, _ := strings.Cut(entry, "=")
	for _, old := range env {
		if strings.HasPrefix(old, key+"=") {
			return env
		}
	}
	return append(env, entry)
}

// workingDir returns the directory to start in. Images may name a relative
// one, which counts from the root.
func workingDir(in Input) (string, error) {
	dir := in.Config.GetWorkingDir()
	if dir == "" {
		dir = in.Image.WorkingDir
		if err := checkText("working directory of the image", dir); err != nil {
			return "", err
		}
	}
	return path.Clean("/" + dir), nil
}
