package config

import (
	"fmt"
	"math"
	"strings"
	"time"
)

const (
	// longestStall and mostBytesPerSecond bound what a registry may be asked for.
	longestStall       = time.Hour
	mostBytesPerSecond = 1 << 20
)

// Image is how images are pulled and kept.
type Image struct {
	RegistryConfigDir      string   `json:"registry_config_dir"      toml:"registry_config_dir"`
	RegistryConfigDirs     []string `json:"registry_config_dirs"     toml:"registry_config_dirs"`
	AuthFile               string   `json:"auth_file"                toml:"auth_file"`
	MirrorCredentials      bool     `json:"mirror_credentials"       toml:"mirror_credentials"`
	MaxConcurrentDownloads int      `json:"max_concurrent_downloads" toml:"max_concurrent_downloads"`
	StallTimeout           string   `json:"stall_timeout"            toml:"stall_timeout"`
	MinBytesPerSecond      int      `json:"min_bytes_per_second"     toml:"min_bytes_per_second"`
	MaxUnpackedSize        int      `json:"max_unpacked_size"        toml:"max_unpacked_size"`
	Volumes                string   `json:"volumes"                  toml:"volumes"`
	Pinned                 []string `json:"pinned"                   toml:"pinned"`
	VerifierDir            string   `json:"verifier_dir"             toml:"verifier_dir"`
}

func defaultImage() Image {
	return Image{
		RegistryConfigDir:      "/etc/berth/certs.d",
		RegistryConfigDirs:     []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"},
		MaxConcurrentDownloads: 6,
		StallTimeout:           "30s",
		MinBytesPerSecond:      256,
		MaxUnpackedSize:        100 << 30,
		Volumes:                "bind",
		Pinned:                 []string{},
	}
}

// Stall is StallTimeout of a valid configuration.
func (i Image) Stall() time.Duration { return duration(i.StallTimeout) }

func imageSection(i *Image) section {
	return section{name: "image", doc: "How images are pulled and kept.", settings: []setting{
		{key: "registry_config_dir", value: &i.RegistryConfigDir, example: `"/etc/berth/certs.d"`,
			doc: "Directory with one folder per registry, each holding a hosts.toml with mirrors, certificates and\n" +
				"headers, as containerd reads them. It may be absent.",
			check: func() string { return checkDir(i.RegistryConfigDir) }},
		{key: "registry_config_dirs", value: &i.RegistryConfigDirs, example: `["/etc/containerd/certs.d", "/etc/docker/certs.d"]`, single: true,
			doc: "More directories of this kind, read in this order for registries that have no folder in\n" +
				"registry_config_dir. A folder _default counts last. They may be absent.",
			check: func() string { return checkEach(i.RegistryConfigDirs, checkDir) }},
		{key: "auth_file", value: &i.AuthFile, example: `"/etc/berth/auth.json"`,
			doc: "File with accounts for registries and mirrors in the form of Docker's config.json, credential helpers\n" +
				"included, for pulls without an account. It is read at each pull and may be absent. Empty means none.",
			check: func() string { return checkOptionalDir(i.AuthFile) }},
		{key: "mirror_credentials", value: &i.MirrorCredentials, example: "false",
			doc: "Whether the account of a pull is for the mirrors of its registry too, as containerd has it. Otherwise mirrors\n" +
				"get an account only from auth_file, or if the account names them.",
			check: func() string { return "" }},
		{key: "max_concurrent_downloads", value: &i.MaxConcurrentDownloads, example: "6",
			doc: "How many layers, of all pulls together, are fetched and unpacked at the same time, from 1 to 64. Each pull gets\n" +
				"one, and each registry its equal share, even while slower ones hold all.",
			check: func() string { return checkRange(i.MaxConcurrentDownloads, 1, maxDownloads) }},
		{key: "stall_timeout", value: &i.StallTimeout, example: `"30s"`,
			doc: "How long a registry may send nothing; twice as long before the first byte of an answer. Then the next host\n" +
				"is asked; without one the pull fails. From 1s to 1h.",
			check: func() string { return checkStall(i.StallTimeout) }},
		{key: "min_bytes_per_second", value: &i.MinBytesPerSecond, example: "256",
			doc: "What a registry must send on average in each stall_timeout, from 0 (anything) to 1048576. Time in which nothing\n" +
				"is read from it does not count.",
			check: func() string { return checkRange(i.MinBytesPerSecond, 0, mostBytesPerSecond) }},
		{key: "max_unpacked_size", value: &i.MaxUnpackedSize, example: "21474836480",
			doc: "How many bytes the layers of one image, the files of one artifact or the content that the volumes of an image copy\n" +
				"may take once unpacked; larger ones are refused. 0 is no limit.",
			check: func() string { return checkRange(i.MaxUnpackedSize, 0, math.MaxInt) }},
		{key: "volumes", value: &i.Volumes, example: `"bind"`,
			doc: "The volumes that images declare: bind gives a container a directory for each, with what the image has there,\n" +
				"writable and removed with the container; mkdir makes only the missing directories, which belong to the user of\n" +
				"the container, in its root file system; ignore does nothing.",
			check: func() string { return checkOneOf(i.Volumes, "bind", "mkdir", "ignore") }},
		{key: "pinned", value: &i.Pinned, example: `["registry.example/tools:1"]`,
			doc: "Images that kubelet's garbage collection must leave alone, by reference or by a pattern of the full name in\n" +
				"which * stands for any characters.",
			check: func() string {
				return checkEach(i.Pinned, checkPin)
			}},
		{key: "verifier_dir", value: &i.VerifierDir, example: `"/etc/berth/verifiers"`,
			doc: "Directory of programs that decide whether an image may be pulled, with the arguments and the input that\n" +
				"containerd's image verifiers get; each must agree. Empty means no verifiers.",
			check: func() string { return checkOptionalDir(i.VerifierDir) }},
	}}
}

func checkStall(text string) string {
	if problem := checkDuration(text, time.Second); problem != "" {
		return problem
	}
	if duration(text) > longestStall {
		return fmt.Sprintf("%s is longer than %s", text, longestStall)
	}
	return ""
}

// checkPin accepts a reference, or a pattern of one.
func checkPin(pin string) string {
	if !strings.Contains(pin, "*") {
		return checkReference(pin)
	}
	if strings.ContainsAny(pin, " \t\n") || len(pin) > 1024 {
		return fmt.Sprintf("%.100q is no pattern of image references; want such as registry.example/tools:*", pin)
	}
	return ""
}
