package metric

import "github.com/berth-runtime/berth/internal/stats"

var networkFamilies = []family{
	network("receive_bytes", "Bytes received.", func(i stats.Interface) uint64 { return i.Received.Bytes }),
	network("receive_packets", "Packets received.", func(i stats.Interface) uint64 { return i.Received.Packets }),
	network("receive_packets_dropped", "Packets dropped while receiving.", func(i stats.Interface) uint64 { return i.Received.Dropped }),
	network("receive_errors", "Errors while receiving.", func(i stats.Interface) uint64 { return i.Received.Errors }),
	network("transmit_bytes", "Bytes sent.", func(i stats.Interface) uint64 { return i.Sent.Bytes }),
	network("transmit_packets", "Packets sent.", func(i stats.Interface) uint64 { return i.Sent.Packets }),
	network("transmit_packets_dropped", "Packets dropped while sending.", func(i stats.Interface) uint64 { return i.Sent.Dropped }),
	network("transmit_errors", "Errors while sending.", func(i stats.Interface) uint64 { return i.Sent.Errors }),
}

// network is a figure of every interface of a pod.
func network(name, help string, number func(stats.Interface) uint64) family {
	return family{
		name: "container_network_" + name + "_total", help: help, keys: []string{"interface"}, of: pod,
		read: func(r *Reading, emit emit) {
			for _, i := range r.Interfaces {
				emit(number(i), i.Name)
			}
		},
	}
}

var processFamilies = []family{
	{
		name: "container_processes", help: "Number of processes.", gauge: true, of: both,
		read: usage(func(c *stats.Container) uint64 { return c.Pids.Processes }),
	},
	{
		name: "container_threads", help: "Number of threads.", gauge: true, of: both,
		read: usage(func(c *stats.Container) uint64 { return c.Pids.Tasks }),
	},
	{
		name: "container_threads_max", help: "The most threads allowed; 0 is no limit.", gauge: true, of: container,
		given: hasPIDs,
		read:  usage(func(c *stats.Container) uint64 { return c.Pids.Limit }),
	},
	{
		name: "container_file_descriptors", help: "Number of open file descriptors.", gauge: true, of: container,
		read: processes(func(p *stats.Processes) uint64 { return p.Descriptors }),
	},
	{
		name: "container_sockets", help: "Number of open sockets.", gauge: true, of: container,
		read: processes(func(p *stats.Processes) uint64 { return p.Sockets }),
	},
	{
		name: "container_ulimits_soft", help: "Soft limits of the first process.", keys: []string{"ulimit"}, gauge: true, of: container,
		read: func(r *Reading, emit emit) {
			if r.OpenFiles > 0 {
				emit(r.OpenFiles, "max_open_files")
			}
		},
	},
	{
		name: "container_start_time_seconds", help: "When it was started, in seconds since 1970.", gauge: true, of: both,
		read: func(r *Reading, emit emit) {
			if !r.Started.IsZero() {
				emit(uint64(r.Started.Unix()))
			}
		},
	},
	{
		name: "container_last_seen", help: "When it was looked at, in seconds since 1970.", gauge: true, of: both,
		read: func(r *Reading, emit emit) { emit(uint64(r.Now.Unix())) },
	},
}

func processes(number func(*stats.Processes) uint64) func(*Reading, emit) {
	return func(r *Reading, emit emit) {
		if r.Processes != nil && !r.Processes.Hidden {
			emit(number(r.Processes))
		}
	}
}

// specFamilies are limits as the kernel has them, not as requested.
var specFamilies = []family{
	{
		name: "container_spec_cpu_shares", help: "CPU weight, in the shares of cgroup v1.", gauge: true, of: container, given: hasCPU,
		read: usage(func(c *stats.Container) uint64 { return c.CPU.Shares }),
	},
	{
		name: "container_spec_cpu_period", help: "Period of the CPU quota in microseconds.", gauge: true, of: container, given: hasCPU,
		read: usage(func(c *stats.Container) uint64 { return c.CPU.Period }),
	},
	{
		name: "container_spec_cpu_quota", help: "CPU quota in microseconds of each period.", gauge: true, of: container, given: hasCPU,
		read: quota(func(c *stats.Container) uint64 { return c.CPU.Quota }),
	},
	{
		name: "container_spec_memory_limit_bytes", help: "Memory limit; 0 is none.", gauge: true, of: container, given: hasMemory,
		read: limits(func(l *stats.MemoryLimits) uint64 { return l.Limit }),
	},
	{
		name: "container_spec_memory_reservation_limit_bytes", help: "Memory that is reclaimed last: the soft limit of cgroup v1, memory.low of v2.",
		gauge: true, of: container, given: hasMemory, read: limits(func(l *stats.MemoryLimits) uint64 { return l.Reservation }),
	},
	{
		name: "container_spec_memory_swap_limit_bytes", help: "Swap limit, on cgroup v1 that of memory and swap together; 0 is none.",
		gauge: true, of: container, given: hasSwap,
		read: limits(func(l *stats.MemoryLimits) uint64 { return l.Swap }),
	},
}

func limits(number func(*stats.MemoryLimits) uint64) func(*Reading, emit) {
	return func(r *Reading, emit emit) {
		if r.Limits != nil {
			emit(number(r.Limits))
		}
	}
}
