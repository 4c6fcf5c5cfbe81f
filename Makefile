# `make demo` and `make test` are all a newcomer needs: both install what is missing, once.

SHELL := /bin/bash
PY := .venv/bin/python
PYTEST := $(PY) -m pytest
JOBS ?= auto
# A Python of 3.11 or later; the first of these that runs.
PYTHON ?= $(firstword $(foreach p,python3.11 python3 python3.12 python3.13,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))

# Debian packages, by what wants them.  `make APT=` does without.
APT += gcc libc6-dev python3-dev pkg-config libxdp-dev libbpf-dev# afxdp/_native
APT += libdpdk-dev dpdk# dpdk/_native and the drivers it loads; dpdk-testpmd
APT += python3-venv# .venv
APT += iproute2 ethtool# namespaces and veth pairs, of demo and tests
APT += iputils-ping curl# clients of the demo
# The examples from source, and llvm-objdump to compare the disassembler with.
APT_TEST += clang llvm

ROOMS := xdp_runtime dataplane afxdp dpdk lb control bench examples tests
# An extension went (make clean) and could be built: install again.
REBUILD := $(if $(wildcard afxdp/_native*.so),,$(shell \
	pkg-config --exists libxdp libbpf 2>/dev/null && echo FORCE)) $(if \
	$(wildcard dpdk/_native*.so),,$(shell pkg-config --exists libdpdk 2>/dev/null && echo FORCE))

.PHONY: help demo test fuzz bench examples lint venv apt apt-test wheel size clean distclean FORCE

help:
	@echo 'make demo      real packets through an unmodified XDP object, in namespaces (root; < 1 min)'
	@echo 'make test      every test'
	@echo 'make fuzz      random programs on all engines and the kernel (root; 2 min)'
	@echo 'make lint      ruff, mypy, the import contracts'
	@echo 'make bench     measurements'
	@echo 'make examples  the examples from source, with clang'
	@echo 'make venv      .venv and the packages it needs; the other targets do it by themselves'
	@echo 'make wheel     dist/*.whl, the native extensions in it'
	@echo 'make size      lines by room'
	@echo 'make clean     what was built;  make distclean  .venv, too'

demo: venv
	@$(PY) examples/demo.py

# What makes interfaces runs apart, two files at a time: it needs the cores.
test: venv apt-test
	@status=0; \
	$(PYTEST) -n $(JOBS) -q -m 'not netns and not perf' || status=1; \
	$(PYTEST) -n 2 --dist loadfile -q -m 'netns and not perf' || { \
		echo 'test: what failed of these runs once more, by itself: a machine may be busy'; \
		$(PYTEST) -q -m 'netns and not perf' --last-failed --last-failed-no-failures none; \
	} || status=1; \
	exit $$status

fuzz: venv
	@$(PY) -m bench.fuzz --seeds 0-1000000 --jobs 2 --seconds 120

lint: venv
	@status=0; set -x; \
	$(PY) -m ruff check --output-format concise . || status=1; \
	$(PY) -m mypy || status=1; \
	.venv/bin/lint-imports --config setup.cfg --no-logo || status=1; \
	exit $$status

bench: venv apt-test
	@$(PY) -m bench

examples: apt-test
	$(MAKE) -C examples
	$(MAKE) -C bench/uxdp

wheel: venv
	@rm -rf build/lib* build/bdist* dist
	@$(PY) -m control.prebuild
	@mkdir -p build; $(PY) -m build --wheel --no-isolation --outdir dist . >build/wheel.log 2>&1 || \
		{ cat build/wheel.log >&2; exit 1; }
	@$(PY) -m zipfile -l dist/*.whl | grep -q 'afxdp/_native.*\.so' || \
		{ echo 'wheel: afxdp/_native is not in it: the AF_XDP port would not work' >&2; exit 1; }
	@$(PY) -m zipfile -l dist/*.whl | grep -q 'dpdk/_native.*\.so' || \
		{ echo 'wheel: dpdk/_native is not in it: the DPDK port would not work' >&2; exit 1; }
	@$(PY) -m zipfile -l dist/*.whl | grep -q 'compiler/prebuilt/worker_loop.*\.bc' || \
		{ echo 'wheel: no templates are in it: the first run would compile them' >&2; exit 1; }
	@! $(PY) -m zipfile -l dist/*.whl | grep '^tests/' || \
		{ echo 'wheel: tests are in it' >&2; exit 1; }
	@ls dist/*.whl

size:
	@for room in $(ROOMS); do \
		lines=$$(find $$room \( -name '*.py' -o -name '*.c' -o -name '*.h' \) \
			! -name '_native.c' -exec cat {} + | wc -l); \
		printf '%-12s %6d\n' $$room $$lines; \
	done | awk '{ print; sum += $$2 } END { printf "%-12s %6d\n", "all", sum }'

# --- installing -----------------------------------------------------------------------------------

venv: apt .venv/installed

.venv/installed: setup.cfg pyproject.toml setup.py $(wildcard */_build.py) $(REBUILD) | apt
	@[ -n "$(PYTHON)" ] || { echo 'venv: no Python 3.11 or later (apt-get install python3)' >&2; \
		exit 1; }
	@[ -x $(PY) ] || { echo 'venv: making .venv with $(PYTHON)'; $(PYTHON) -m venv .venv; }
	@echo 'venv: installing xdpu and what it needs into .venv'
	@$(PY) -m pip install -q --disable-pip-version-check 'setuptools>=77' 'cffi>=2.0'
	@PYTHONWARNINGS=ignore $(PY) -m pip install -q --disable-pip-version-check --root-user-action ignore \
		--no-build-isolation -e '.[test,dev,bench]'
	@# pip keeps to itself what setup.py says: ask why the extension was not built.
	@ls afxdp/_native*.so >/dev/null 2>&1 || $(PY) -c \
		'import runpy; runpy.run_path("afxdp/_build.py")["is_installed"]()'
	@ls dpdk/_native*.so >/dev/null 2>&1 || $(PY) -c \
		'import runpy; runpy.run_path("dpdk/_build.py")["is_installed"]()'
	@$(PY) -m control.prebuild
	@touch $@

# $(call install,PACKAGES): those that are missing, by apt; who is not root is told the command.
define install
	@wanted=$$(echo $(1)); \
	if [ -z "$$wanted" ]; then exit 0; fi; \
	if ! command -v dpkg-query >/dev/null; then \
		echo "apt: not Debian; these have to be there already: $$wanted" >&2; exit 0; fi; \
	have=$$(dpkg-query -W -f='/$${Package}/$${db:Status-Status} ' $$wanted 2>/dev/null); \
	missing=; \
	for p in $$wanted; do [[ $$have == */$$p/installed* ]] || missing+=" $$p"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ $$(id -u) != 0 ]; then \
		echo "apt: missing:$$missing" >&2; \
		echo "run: sudo apt-get update && sudo apt-get install -y --no-install-recommends$$missing" \
			"  (or go without them: make APT= ...)" >&2; exit 1; fi; \
	echo "apt: installing$$missing"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq </dev/null && \
	apt-get install -qq -y --no-install-recommends$$missing </dev/null >/dev/null
endef

apt:
	$(call install,$(APT))

apt-test: apt
	$(call install,$(APT_TEST))

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	rm -rf .hypothesis afxdp/_native.* dpdk/_native.*
	find $(ROOMS) -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf .venv
