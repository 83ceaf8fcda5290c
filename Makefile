# Berth. `make help` says what there is.

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=

PROGRAMS := berthd berth-shim berth
# go test, and at the end what was skipped and why.
TEST     := $(GO) run ./test/summary
LINT     := $(GO) tool -modfile=tools/go.mod golangci-lint
# The programs are static: they run in any image and on any distribution.
BUILD    := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w'
CRITEST  := $(GO) test -count=1 -v -timeout 3h -artifacts -outputdir bin ./test/conformance -args -passes
# The passes of critest that `make test` ends with. `make test CONFORMANCE=` leaves them out.
CONFORMANCE ?= runc
# The virtual machines that `make test` boots after that, by their security module. `make test MACHINES=` leaves them out.
MACHINES ?= apparmor,selinux
VM       := $(GO) test -count=1 -v -timeout 1h ./test/vm -args -boots

.DEFAULT_GOAL := help
.PHONY: build demo check test test-vm conformance cluster lint install help generate bench fuzz clean

help: ## list the targets (this)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

build: ## build bin/berthd, bin/berth-shim and bin/berth (needs Go; first time 2 min, then seconds)
	@tools/prepare build
	@mkdir -p bin
	$(BUILD) -o bin/ $(PROGRAMS:%=./cmd/%)

demo: build ## pull an image, run a pod, exec, logs, remove, each step timed (needs root; 10 s after the build)
	@tools/prepare demo
	@$(GO) run ./test/demo -bin bin

# Two packages at a time, each in namespaces of its own (test/isolation). Tests shuffle; a failure prints the seed.
test: ## run all tests, with the race detector and the leak check, list what was skipped, critest once, and two virtual machines (needs root and, for the last two, Debian; 40 min, first time 50)
	@tools/prepare test
	$(TEST) -p 2 -count=1 -race -shuffle=on -timeout 45m ./...
ifneq ($(CONFORMANCE),)
	@tools/prepare conformance
	@mkdir -p bin
	$(CRITEST) $(CONFORMANCE)
endif
ifneq ($(MACHINES),)
	@tools/prepare test-vm
	$(VM) $(MACHINES)
endif

# A test that needs no root is one that does not call privilege.Root; their results are cached.
check: ## check format and vet, lint the last commit and what is not committed, run the tests that need no root (any user; 1 min with warm caches)
	@test -z "$$(gofmt -l cmd internal test api)" || { gofmt -d cmd internal test api; exit 1; }
	$(GO) vet ./...
	BERTH_TESTS=unprivileged $(TEST) ./...
	@tools/prepare lint
	$(LINT) run --new-from-rev=HEAD~1 ./...

test-vm: ## run tests in virtual machines with systemd, cgroup v2, AppArmor and SELinux, under emulation (needs root and Debian; 17 min, first time 20)
	@tools/prepare test-vm
	$(VM) apparmor,selinux

conformance: ## run critest with runc and crun, built-in network and CNI, SPDY and WebSocket (needs root and Debian; 4 min, first time 8)
	@tools/prepare conformance
	@mkdir -p bin
	$(CRITEST) runc,runc:2:cni:websocket,crun:cni,crun:2:websocket

# CLUSTER takes flags: CLUSTER='-handler runc', CLUSTER='-run resize', CLUSTER=-hold.
cluster: build ## run a single-node Kubernetes 1.37 on Berth and check what users of a cluster do (needs root and Debian; 6 min, first time 25)
	@tools/prepare cluster
	$(GO) run ./test/cluster -bin bin $(CLUSTER)

lint: ## check format, style and length of files and functions (needs nothing but Go; 3 min, first time 10)
	@tools/prepare lint
	@test -z "$$(gofmt -l cmd internal test api)" || { gofmt -d cmd internal test api; exit 1; }
	$(LINT) config verify
	$(LINT) run ./...

bench: build ## measure what kubelet waits for and what a pod costs (needs root and an idle machine; 1 min)
	@tools/prepare test
	BERTH_BIN=$(CURDIR)/bin $(GO) test -run '^$$' -bench . -benchtime 30x ./test/bench

fuzz: ## fuzz every parser of foreign input for 20 s each (needs root; 8 min)
	@tools/prepare test
	@set -e; for p in $$($(GO) list ./internal/...); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
			echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime 20s $$p; \
		done; done

generate: ## make generated code and documents again; the tree must not change (needs protoc; 1 min)
	@tools/prepare generate
	$(GO) generate ./...

install: build ## install programs and systemd unit beneath $(DESTDIR)$(PREFIX) (needs the right to write there; seconds)
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 0755 $(PROGRAMS:%=bin/%) $(DESTDIR)$(PREFIX)/bin
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local/bin|$(PREFIX)/bin|' packaging/berthd.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/berthd.service
	chmod 0644 $(DESTDIR)$(PREFIX)/lib/systemd/system/berthd.service

clean: ## remove bin/
	rm -rf bin
