# Everything a developer or CI does, from a bare Debian with python 3.11, make and git.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# Several tests at once, by file; those with windows one after the other.
CORES := -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
SYSTEM_PACKAGES := python3-venv xvfb xauth libgl1 libegl1 libgl1-mesa-dri libxkbcommon-x11-0 libdbus-1-3 libfontconfig1 \
  libglib2.0-0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 libxcb-shape0 \
  libxcb-xinerama0 libxcb-cursor0 libxcb-xkb1
# A test run on a screen of its own: GUI tests need OpenGL, which Qt's offscreen platform has not and Xvfb has.
XVFB := xvfb-run --auto-servernum --server-args="-screen 0 1920x1200x24 +extension GLX"

# The tools that benchmarks compare with, and figures at full size where BENCH_ARGS is empty.
BENCH_VENV ?= .venv-bench
BENCH_ARGS ?= --quick
RESULTS := $(if $(BENCH_ARGS),build/benchmarks,benchmarks/results)

# Lanes with other versions than constraints.txt has, each in an environment of its own.
PYQT6_VENV ?= .venv-pyqt6
MIN_VENV ?= .venv-min
LATEST_VENV ?= .venv-latest
LANE := encoders,exchange,onnx,openvino,pyqt6,test

.PHONY: help setup system demo test test-all test-pyqt6 test-min test-latest cuda lint types workflows check cover screenshots bench wheel docs clean

help:
	@echo "make demo      install, then run the main job on sample data"
	@echo "make test      install, then run the tests (GUI ones on a virtual screen)"
	@echo "make test-all  the slow tests too"
	@echo "make cuda      the tests and benchmarks that need an NVIDIA GPU"
	@echo "make check     ruff, mypy, import-linter, the workflows"
	@echo "make cover     the tests with coverage measured"
	@echo "make bench     the benchmarks in small; BENCH_ARGS= for full size (hours)"
	@echo "make docs      the site of the documentation, into build/site"
	@echo "make wheel     what is released, into dist/, checked"
	@echo "make test-pyqt6, test-min, test-latest   the tests with PyQt6, with the oldest versions, with the newest"

# System libraries that Qt, OpenGL and Xvfb need. Installed where we may; otherwise the one line to run is printed.
system:
	@missing=""; for p in $(SYSTEM_PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q "ok installed" || missing="$$missing $$p"; done; \
	if ! command -v dpkg-query >/dev/null; then echo "Not a Debian system: install Xvfb, OpenGL and the xcb libraries of Qt yourself."; \
	elif [ -z "$$missing" ]; then true; \
	elif [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo apt-get update -qq && sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "These system libraries are missing. Run once:  sudo apt-get install -y$$missing"; exit 1; fi

$(VENV)/.installed: pyproject.toml constraints.txt | system
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

setup: $(VENV)/.installed

demo: setup
	$(BIN)/napari-unet demo --out demo-output

test: setup
	$(XVFB) $(BIN)/python -m pytest $(CORES) -m "not slow and not cuda" $(PYTEST_ARGS)

test-all: setup
	$(XVFB) $(BIN)/python -m pytest $(CORES) $(PYTEST_ARGS)

# constraints.txt pins both bindings; one environment holds one of them, as a user's does.
$(PYQT6_VENV)/.installed: pyproject.toml constraints.txt | system
	$(PYTHON) -m venv $(PYQT6_VENV)
	$(PYQT6_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(PYQT6_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$(LANE)]"
	touch $@

test-pyqt6: $(PYQT6_VENV)/.installed
	PYTEST_QT_API=pyqt6 $(XVFB) $(PYQT6_VENV)/bin/python -m pytest $(CORES) -m "not slow and not cuda" $(or $(PYTEST_ARGS),tests/qt)

# The oldest versions that pyproject.toml allows, and the newest. Of the former, what needs no window.
$(MIN_VENV)/.installed: pyproject.toml constraints-min.txt | system
	$(PYTHON) -m venv $(MIN_VENV)
	$(MIN_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(MIN_VENV)/bin/python -m pip install --quiet --constraint constraints-min.txt --editable ".[$(LANE)]"
	touch $@

test-min: $(MIN_VENV)/.installed
	PYTEST_QT_API=pyqt6 $(XVFB) $(MIN_VENV)/bin/python -m pytest $(CORES) -m "not slow and not cuda and not gui" $(PYTEST_ARGS)

test-latest: | system
	$(PYTHON) -m venv --clear $(LATEST_VENV)
	$(LATEST_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(LATEST_VENV)/bin/python -m pip install --quiet --editable ".[$(LANE)]"
	PYTEST_QT_API=pyqt6 $(XVFB) $(LATEST_VENV)/bin/python -m pytest $(CORES) -m "not slow and not cuda" $(PYTEST_ARGS)

# On a machine with an NVIDIA GPU: the tests that need one, and the CUDA column of each benchmark that has one.
cuda: setup $(BENCH_VENV)/.installed
	$(XVFB) $(BIN)/python -m pytest -m cuda $(PYTEST_ARGS)
	$(BENCH_VENV)/bin/python benchmarks/proposal.py --device cuda --json build/cuda/proposal.json
	$(BENCH_VENV)/bin/python benchmarks/training.py --device cuda --json build/cuda/training.json
	$(BENCH_VENV)/bin/python benchmarks/memory.py --device cuda --json build/cuda/memory.json

cover: setup
	$(XVFB) $(BIN)/python -m coverage run -m pytest -m "not slow and not cuda" $(PYTEST_ARGS)
	$(BIN)/python -m coverage report

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

workflows: setup
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github/workflows

check: lint types workflows
	$(BIN)/lint-imports --config setup.cfg

screenshots: setup
	$(XVFB) $(BIN)/python docs/make_screenshots.py

# RootPainter's trainer pins older versions of what it imports than constraints.txt has: its network needs none of them.
$(BENCH_VENV)/.installed: pyproject.toml constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(BENCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[onnx,openvino]" --requirement benchmarks/peers.txt
	$(BENCH_VENV)/bin/python -m pip install --quiet --no-deps root-painter-trainer==0.3.3
	touch $@

bench: setup $(BENCH_VENV)/.installed
	mkdir -p $(RESULTS)
	$(BENCH_VENV)/bin/python benchmarks/training.py $(BENCH_ARGS) --json $(RESULTS)/training.json
	$(BENCH_VENV)/bin/python benchmarks/memory.py $(BENCH_ARGS) --json $(RESULTS)/memory.json
	$(BIN)/python benchmarks/io.py $(BENCH_ARGS) --json $(RESULTS)/io.json
	$(XVFB) $(BIN)/python benchmarks/ui.py $(BENCH_ARGS) --json $(RESULTS)/ui.json
	$(BIN)/python benchmarks/ablations.py $(BENCH_ARGS) --json $(RESULTS)/ablations.json
	$(BIN)/python benchmarks/whole_set.py $(BENCH_ARGS) --json $(RESULTS)/whole_set.json
	$(BENCH_VENV)/bin/python benchmarks/effort.py $(BENCH_ARGS) --json $(RESULTS)/effort.json
	$(BIN)/python benchmarks/streams.py $(BENCH_ARGS) --json $(RESULTS)/streams.json
	$(BIN)/python benchmarks/curves.py $(BENCH_ARGS) --json $(RESULTS)/curves.json
	$(BENCH_VENV)/bin/python benchmarks/proposal.py $(BENCH_ARGS) --json $(RESULTS)/proposal.json
	$(BIN)/python benchmarks/streaming.py $(BENCH_ARGS) --json $(RESULTS)/streaming.json
	$(BIN)/python benchmarks/clusters.py $(BENCH_ARGS) --json $(RESULTS)/clusters.json
	$(BIN)/python benchmarks/journal.py $(BENCH_ARGS) --json $(RESULTS)/journal.json
	$(BIN)/python benchmarks/live.py $(BENCH_ARGS) --json $(RESULTS)/live.json
	$(BENCH_VENV)/bin/python benchmarks/editing.py $(BENCH_ARGS) --json $(RESULTS)/editing/editing.json

docs: setup
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build

# What is released. That it can be installed and opens a window: tests/tools/test_release.py, a slow test.
wheel: setup
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/npe2 validate --imports napari_unet/napari.yaml
	$(BIN)/python tools/check_release.py dist

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(PYQT6_VENV) $(MIN_VENV) $(LATEST_VENV) demo-output build dist *.egg-info
