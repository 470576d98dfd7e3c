# make demo    watch a router reach a container behind this host, and ndppd fail at it
# make test    run every test
# make test-vm run those of the program in a virtual machine, with Debian 12's own kernel
# make bench   answers per second from userspace, beside ndppd's
# make build   leave .venv/bin/ndxdp
# make format  lay out C and Python as the tests want it
#
# Each sets up what it needs: Debian's packages (as root) and a Python environment in .venv.

SHELL := /bin/bash
.DELETE_ON_ERROR:

ARCH := $(shell dpkg --print-architecture 2>/dev/null)

BUILD_PACKAGES := clang llvm libbpf-dev libbpf1 linux-libc-dev python3-venv
DEMO_PACKAGES := iproute2 iputils-ping ndppd nftables procps util-linux
BENCH_PACKAGES := iproute2 ndppd procps util-linux
TEST_PACKAGES := $(DEMO_PACKAGES) bpftool busybox-static clang-format docker.io ethtool ndisc6 \
	python3-bpfcc linux-headers-$(ARCH) tshark
VM_PACKAGES := debootstrap e2fsprogs qemu-system-x86 util-linux

# Install those packages that are missing: $(call packages,NAMES)
packages = @missing=$$(for name in $(1); do \
		[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$name 2>/dev/null)" = installed ] || \
		echo $$name; done); \
	[ -z "$$missing" ] || { echo "installing" $$missing; \
		export DEBIAN_FRONTEND=noninteractive; \
		{ apt-get update && apt-get install -y --no-install-recommends $$missing; } \
			>build/apt.log 2>&1 || { tail build/apt.log; exit 1; }; }

SOURCES := pyproject.toml setup.py $(wildcard bpf/*.[ch])

.PHONY: bench build demo test test-vm format clean
.PHONY: packages-bench packages-build packages-demo packages-test packages-vm

build: packages-build .venv/built

demo: packages-demo build
	python3 lab/demo.py

test: packages-test build .venv/tested
	.venv/bin/python -m tests $(TESTS)

test-vm: packages-vm build
	.venv/bin/python -m lab.vm $(if $(TIMEOUT),--timeout $(TIMEOUT)) -- $(TESTS)

bench: packages-bench build
	.venv/bin/python -m benchmarks.userspace

format: build .venv/tested
	clang-format -i bpf/*.[ch] lab/*.c
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:
	rm -rf .venv build ndxdp/bpf *.egg-info

packages-bench packages-build packages-demo packages-test packages-vm: | build-directory
packages-build: ; $(call packages,$(BUILD_PACKAGES))
packages-demo: ; $(call packages,$(DEMO_PACKAGES))
packages-bench: ; $(call packages,$(BENCH_PACKAGES))
packages-test: ; $(call packages,$(TEST_PACKAGES))
packages-vm: ; $(call packages,$(VM_PACKAGES))

.PHONY: build-directory
build-directory:
	@mkdir -p build

.venv/built: $(SOURCES) | packages-build
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/tested: .venv/built
	.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@
