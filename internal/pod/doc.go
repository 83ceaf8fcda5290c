// Package pod is the pod engine: it owns the life of pod sandboxes and
// containers from the request that makes them to the request that removes
// them, across restarts of the daemon.
//
// Start reading at engine.go (what the engine offers and needs) and then
// machine/machine.go (the pure core that decides what happens next). The rest
// follows the life of an object:
//
//	engine.go      what the engine is made of, opening and closing it
//	sandbox.go     RunSandbox, StopSandbox, RemoveSandbox
//	container.go   CreateContainer, StartContainer, StopContainer, RemoveContainer
//	driver.go      carries out what the core decides, one effect at a time
//	*_steps.go     the {do, undo, probe} of each step
//	plugins.go     events and adjustments of NRI plugins; bundle.go what for
//	record.go      the records of sandboxes and containers; store/ keeps them
//	recover.go     what happens at the start of the daemon
//	index.go       names, prefixes, labels; view.go what readers get
//	exec.go        commands in containers; attach.go their streams
//	stats.go       figures
//	events.go      publishes changes
//
// Lock order: Engine.mu before object.mu; neither is ever held across I/O.
package pod
