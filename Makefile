# make demo    show a router that reaches a container behind this host, and ndppd that fails at it
# make demo-monitoring  the same network under traffic, with Prometheus at localhost, until Ctrl-C
# make demo-fleet  show three hosts that share addresses, one of which fails, while pings go on
# make demo-share  show hosts behind a host that get addresses of the router's only /64
# make test    run every test; TESTS='...' are arguments of pytest
# make coverage  run the tests of ndxdp's Python code, and print which lines they reach
# make test-vm   run the tests of the program in a virtual machine, with Debian 12's own kernel
# make test-kernels  run the tests that depend on the kernel, on several kernels of Debian's
# make test-long   run the gateway under a minute of traffic
# make fuzz    compare the programs with their specification on ten million frames; FRAMES=, SEED=
# make soak    run an hour of solicitations while everything changes; SECONDS=, SEED=
# make test-fleet  run five hosts that share addresses, and etcd, under random faults; MINUTES=, SEED=
# make test-share  run a share with 4096 hosts, under floods and kills; 20 minutes; SECONDS=, SEED=, PARTS=
# make test-kills  send SIGKILL at every moment of every change, in every mode: takes hours
# make test-service  test the systemd service in a virtual machine under a real systemd
# make lab-vm  install, restart, upgrade, reboot and purge on a host, in three virtual machines
# make lab-vagrant  validate the Vagrantfile
# make bench   measure ndxdp beside other responders, for docs/performance.md; takes 15 minutes
# make bench-quick  the same in two minutes, without a million addresses; only prints it
# make bench-daemon, bench-etcd, bench-fleet, bench-following, bench-groups, bench-growth, bench-routes,
#   bench-trace  measure memory and start of the daemon; rules from etcd; a thousand hosts at etcd; how
#              soon it follows changes; joined multicast groups; how cost grows with the number of
#              rules; 200 000 routes; tracing
# make dashboards  generate dashboard, alerts and recording rules
# make screenshots  take the pictures of the status page in docs/pictures; takes 3 minutes
# make check-dashboards  compare the dashboard with Grafana's schema; needs npm
# make build   build .venv/bin/ndxdp
# make dist    build wheel and sdist in build/dist
# make deb     build the Debian package in build; VERSION= gives it another version
# make test-deb  install, upgrade and purge it on Debian 12, 13 and Ubuntu 24.04, each in a chroot
# make test-arm64  compile it on arm64 and try it on Debian's kernel for arm64, both emulated
# make image   build a container image with it, by docker build
# make test-image  run that image by the compose file, with two versions of Docker
# make lock    renew constraints.txt, the exact versions of the Python packages in .venv
# make format  format C and Python
#
# Each target sets up what it needs: Debian's packages (as root) and a Python environment in .venv.
# It waits for another apt. The services of these packages are neither started nor enabled.

SHELL := /bin/bash
.DELETE_ON_ERROR:

ARCH := $(shell dpkg --print-architecture 2>/dev/null)

BUILD_PACKAGES := clang llvm libbpf-dev libbpf1 linux-libc-dev python3-venv
DEB_PACKAGES := debhelper dh-python dpkg-dev
IMAGE_PACKAGES := docker.io docker-compose
DEMO_PACKAGES := iproute2 iputils-ping ndppd nftables procps util-linux
DEMO_FLEET_PACKAGES := $(DEMO_PACKAGES) etcd-server
DEMO_SHARE_PACKAGES := $(DEMO_PACKAGES) radvd
BENCH_PACKAGES := bpftool ethtool iproute2 ndppd npd6 procps util-linux
BENCH_DAEMON_PACKAGES := $(BENCH_PACKAGES) busybox-static docker.io
BENCH_ETCD_PACKAGES := $(BENCH_PACKAGES) etcd-client etcd-server openssl
TEST_PACKAGES := $(DEMO_PACKAGES) bpftool busybox-static clang-format docker.io etcd-client etcd-server ethtool fish iptables \
	lintian man-db ndisc6 npd6 openssl python3-bpfcc linux-headers-$(ARCH) \
	keepalived linux-libc-dev-arm64-cross radvd systemd tshark zsh
VM_PACKAGES := cpio debootstrap e2fsprogs kmod qemu-system-x86 util-linux
ARM64_PACKAGES := cpio kmod mmdebstrap qemu-system-arm qemu-user-static util-linux
LAB_PACKAGES := $(VM_PACKAGES) qemu-utils
VAGRANT_PACKAGES := vagrant vagrant-libvirt

# Install those packages that are missing: $(call packages,NAMES)
packages = @missing=$$(for name in $(1); do \
		[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$name 2>/dev/null)" = installed ] || \
		echo $$name; done); \
	[ -z "$$missing" ] || { echo "installing" $$missing; \
		export DEBIAN_FRONTEND=noninteractive; \
		{ lab/apt-get update && lab/apt-get install -y --no-install-recommends $$missing; } \
			3>&1 >build/apt.log 2>&1 || { tail build/apt.log; exit 1; }; }

GRAFANA_SCHEMA := 13.2.3

DEB := ndxdp_$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' ndxdp/__init__.py)_all.deb
# The last commits whose maps had the former layout, and one that is not taken over, for tests of upgrades.
LAYOUTS = git -c safe.directory=$(CURDIR) log -3 --format=%H~ -G'define NDP_ABI_VERSION' -- bpf/ndp_abi.h
FORMER_LAYOUT = $$($(LAYOUTS) | head -n 1)
OLDER_LAYOUT = $$($(LAYOUTS) | tail -n 1)
PROMETHEUS := build/prometheus/usr/share/javascript
SOURCES := pyproject.toml setup.py $(wildcard bpf/*.[ch])

.PHONY: bench bench-daemon bench-etcd bench-fleet bench-following bench-groups bench-growth bench-quick bench-routes
.PHONY: bench-trace build check-dashboards clean coverage dashboards deb demo demo-fleet demo-monitoring demo-share
.PHONY: dist format fuzz image
.PHONY: lab-vagrant lab-vm lock screenshots soak test test-arm64 test-deb test-image test-kernels test-kills
.PHONY: test-fleet test-long test-service test-share test-vm
.PHONY: packages-arm64 packages-bench packages-bench-daemon packages-bench-etcd packages-build packages-deb packages-demo
.PHONY: packages-demo-fleet packages-demo-share
.PHONY: packages-image packages-lab packages-test packages-vagrant packages-vm

build: packages-build .venv/built

demo: packages-demo build
	python3 lab/demo.py

demo-fleet: packages-demo-fleet build
	python3 lab/fleet_demo.py

demo-share: packages-demo-share build
	python3 lab/share_demo.py

demo-monitoring: packages-demo build $(PROMETHEUS)
	@.venv/bin/python -m lab.monitoring

test: packages-test packages-deb build .venv/tested .venv/packages $(PROMETHEUS) build/wheels
	.venv/bin/python -m tests $(TESTS)

# Files that reach every folder of ndxdp in a fraction of the time of all tests.
IN_COVERAGE := addresses backoff commands config config_files convert convert_ndppd daemon dashboards docker \
	docker_watcher doctor doctor_firewall doctor_reception doctor_sources exporter gateway hygiene metrics ndp \
	neighbour policy prefix reload rules run status toml_lines trace trace_load userspace \
	without_links
COVERAGE_TESTS ?= $(IN_COVERAGE:%=tests/test_%.py)

coverage: packages-test build .venv/tested $(PROMETHEUS)
	rm -rf build/coverage
	nice -n 10 .venv/bin/coverage run -m tests -q $(COVERAGE_TESTS); code=$$?; \
		.venv/bin/coverage combine --quiet && .venv/bin/coverage html --quiet && \
		.venv/bin/coverage report --skip-empty >build/coverage/report.txt; \
		cat build/coverage/report.txt; exit $$code

# The newest versions that pyproject.toml allows. Run it with the oldest Python that ndxdp supports.
lock: packages-build
	rm -rf build/lock && python3 -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check '.[package,test]'
	{ sed -n '/^#/p' constraints.txt && build/lock/bin/pip freeze --all --exclude pip --exclude ndxdp; } \
		>build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -r build/lock

dist: build .venv/packages
	rm -rf build/dist
	.venv/bin/python -m build --no-isolation --outdir build/dist . >build/dist.log 2>&1 || \
		{ tail build/dist.log; exit 1; }
	@ls build/dist/*

deb: packages-deb build .venv/packages
	@.venv/bin/python packaging/deb.py $(if $(VERSION),--version $(VERSION))

test-deb: packages-test packages-vm packages-deb build .venv/tested .venv/packages
	rm -rf build/try
	.venv/bin/python packaging/deb.py --directory build/try
	.venv/bin/python packaging/deb.py --directory build/try/again
	.venv/bin/python packaging/deb.py --directory build/try --version 9~test
	.venv/bin/python packaging/deb.py --directory build/try --version 0.0.1~test --commit $(FORMER_LAYOUT)
	.venv/bin/python packaging/deb.py --directory build/try --version 0.0.0~test --commit $(OLDER_LAYOUT)
	cmp build/try/$(DEB) build/try/again/$(DEB)
	lintian --display-info --pedantic --suppress-tags package-supports-alternative-init-but-no-init.d-script \
		--fail-on error,warning,info,pedantic --allow-root build/try/$(DEB)
	.venv/bin/python -m tests.scenarios.debian_releases build/try/$(DEB) build/try/ndxdp_9~test_all.deb \
		build/try/ndxdp_0.0.1~test_all.deb build/try/ndxdp_0.0.0~test_all.deb $(RELEASES)
	.venv/bin/python -m tests.scenarios.first_use build/try/$(DEB) $(RELEASES)

test-arm64: packages-arm64 packages-vm packages-deb build .venv/tested .venv/packages
	.venv/bin/python packaging/deb.py --directory build/try
	.venv/bin/python -m tests.scenarios.arm64 build/try/$(DEB)

test-image: packages-test packages-vm packages-deb packages-image build .venv/tested .venv/packages
	.venv/bin/python packaging/deb.py --directory build/try
	.venv/bin/python -m tests.scenarios.container_image build/try/$(DEB)

image: deb
	mkdir -p build/image
	cp packaging/container/Containerfile build/image
	cp build/$(if $(VERSION),ndxdp_$(VERSION)_all.deb,$(DEB)) build/image/ndxdp.deb
	docker build --tag ndxdp --file build/image/Containerfile build/image

fuzz: packages-demo build .venv/tested
	nice -n 10 .venv/bin/python -m tests.fuzz $(if $(FRAMES),--frames $(FRAMES)) \
		$(if $(SEED),--seed $(SEED)) $(if $(OUTPUT),--output $(OUTPUT))

soak: packages-demo build .venv/tested
	.venv/bin/python -m tests.soak $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(SEED),--seed $(SEED)) $(if $(OUTPUT),--output $(OUTPUT))

test-long: packages-test build .venv/tested
	NDXDP_TRAFFIC_SECONDS=60 .venv/bin/python -m tests tests/test_following.py -k upstream

test-kills: packages-test build .venv/tested
	NDXDP_TEST_KILLS=1 .venv/bin/python -m tests tests/test_kill_points.py

test-fleet: packages-test build .venv/tested
	.venv/bin/python -m tests.scenarios.fleet $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

test-share: packages-test build .venv/tested
	.venv/bin/python -m tests.scenarios.sharing --raise-limits $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(SEED),--seed $(SEED)) $(PARTS)

test-vm: packages-vm build
	.venv/bin/python -m lab.vm $(if $(TIMEOUT),--timeout $(TIMEOUT)) -- $(TESTS)

test-kernels: packages-vm build
	nice -n 10 .venv/bin/python -m lab.kernel_matrix $(if $(TIMEOUT),--timeout $(TIMEOUT)) \
		$(if $(TESTS),--groups $(TESTS)) $(KERNELS)

test-service: packages-vm build
	.venv/bin/python -m lab.vm --systemd $(if $(TIMEOUT),--timeout $(TIMEOUT)) -- $(TESTS)

lab-vm: packages-lab deb
	.venv/bin/python packaging/deb.py --directory build/try --version 0.0.1~test --commit $(FORMER_LAYOUT)
	.venv/bin/python -m lab.life --other build/try/ndxdp_0.0.1~test_all.deb $(CHECKS)

# VirtualBox is not in Debian: Vagrant asks a stand-in for its version, and validates the settings.
lab-vagrant: packages-vagrant
	mkdir -p build/vagrant/bin
	printf '#!/bin/sh\necho 7.0.20r163906\n' >build/vagrant/bin/VBoxManage && chmod 755 build/vagrant/bin/VBoxManage
	cd vagrant && for provider in libvirt virtualbox; do \
		PATH=$(CURDIR)/build/vagrant/bin:$$PATH VAGRANT_DEFAULT_PROVIDER=$$provider \
		VAGRANT_CHECKPOINT_DISABLE=1 VAGRANT_HOME=$(CURDIR)/build/vagrant \
		VAGRANT_DOTFILE_PATH=$(CURDIR)/build/vagrant/dot vagrant validate || exit; done

bench: packages-bench build
	.venv/bin/python -m benchmarks --page docs/performance.md

bench-quick: packages-bench build
	.venv/bin/python -m benchmarks --quick --output build/bench-quick.json

bench-routes: packages-bench build
	.venv/bin/python -m benchmarks.routes

bench-groups: packages-bench build
	.venv/bin/python -m benchmarks.groups

bench-trace: packages-bench build
	.venv/bin/python -m benchmarks.tracing

dashboards: build .venv/tested
	.venv/bin/python -m dashboards.mixin

# grafana.ts imports Grafana's own types. Needs npm.
check-dashboards: | build-directory
	npm install --silent --no-save --no-package-lock --prefix build/grafana \
		@grafana/schema@$(GRAFANA_SCHEMA) typescript@5
	for name in ndxdp ndxdp-interface; do \
		cat dashboards/grafana.ts dashboards/$$name.json >build/grafana/$$name.ts || exit; \
	done
	cd build/grafana && node_modules/.bin/tsc --noEmit --strict --skipLibCheck \
		--module nodenext --moduleResolution nodenext ndxdp.ts ndxdp-interface.ts

bench-daemon: packages-bench-daemon build
	.venv/bin/python -m benchmarks.daemon

bench-etcd: packages-bench-etcd build
	.venv/bin/python -m benchmarks.etcd

bench-fleet: packages-bench-etcd build
	.venv/bin/python -m benchmarks.fleet

bench-following: packages-bench build
	.venv/bin/python -m benchmarks.following

bench-growth: packages-bench build
	.venv/bin/python -m benchmarks.growth $(if $(ONLY),--only '$(ONLY)' --output build/growth.json,--page docs/scale.md)

screenshots: packages-demo build
	.venv/bin/python -m lab.screenshots docs/pictures

format: build .venv/tested
	clang-format -i bpf/*.[ch] lab/*.c benchmarks/*.c
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:
	rm -rf .venv build ndxdp/bpf *.egg-info

packages-arm64 packages-bench packages-bench-daemon packages-bench-etcd: | build-directory
packages-build packages-deb: | build-directory
packages-demo packages-demo-fleet packages-demo-share: | build-directory
packages-image packages-lab packages-test packages-vagrant packages-vm: | build-directory
packages-arm64: ; $(call packages,$(ARM64_PACKAGES))
packages-build: ; $(call packages,$(BUILD_PACKAGES))
packages-image: ; $(call packages,$(IMAGE_PACKAGES))
packages-deb: ; $(call packages,$(DEB_PACKAGES))
packages-demo: ; $(call packages,$(DEMO_PACKAGES))
packages-demo-fleet: ; $(call packages,$(DEMO_FLEET_PACKAGES))
packages-demo-share: ; $(call packages,$(DEMO_SHARE_PACKAGES))
packages-bench: ; $(call packages,$(BENCH_PACKAGES))
packages-bench-etcd: ; $(call packages,$(BENCH_ETCD_PACKAGES))
packages-bench-daemon: ; $(call packages,$(BENCH_DAEMON_PACKAGES))
packages-test: ; $(call packages,$(TEST_PACKAGES))
packages-vm: ; $(call packages,$(VM_PACKAGES))
packages-lab: ; $(call packages,$(LAB_PACKAGES))
packages-vagrant: ; $(call packages,$(VAGRANT_PACKAGES))

# The packages inside the Debian package. The tests, which build one, have no network.
build/wheels: packaging/requirements.txt | .venv/built
	.venv/bin/python packaging/deb.py --fetch
	@touch $@

# Prometheus and the libraries of its graphs. Unpacked, not installed, because Debian's package would
# start it as a service.
$(PROMETHEUS): | build-directory
	rm -rf build/prometheus build/prometheus.new build/prometheus.debs
	mkdir build/prometheus.debs
	cd build/prometheus.debs && { fetch() { ../../lab/apt-get download prometheus \
			$$(apt-cache depends --recurse --important prometheus | grep -E '^(libjs|fonts)-'); }; \
		fetch || { ../../lab/apt-get update && fetch; }; } >../apt.log 2>&1 || { tail ../apt.log; exit 1; }
	for package in build/prometheus.debs/*.deb; do dpkg-deb -x "$$package" build/prometheus.new || exit; done
	rm -r build/prometheus.debs
	mv build/prometheus.new build/prometheus

.PHONY: build-directory
build-directory:
	@mkdir -p build

PIP_INSTALL := .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.venv/built: $(SOURCES) constraints.txt | packages-build
	python3 -m venv .venv
	$(PIP_INSTALL) --editable .
	@touch $@

.venv/tested: .venv/built
	$(PIP_INSTALL) --editable '.[test]'
	@touch $@

.venv/packages: .venv/built
	$(PIP_INSTALL) --editable '.[package]'
	@touch $@
