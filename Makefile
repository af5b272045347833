# `make demo` and `make test` do all the set-up: they need Python 3.11 or newer and make, and write only inside this folder.
# PYTHON picks the interpreter, VENV the environment, WORKERS the number of test processes (0: one, in this process).
PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-edge test-gpu lint bench clean

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --constraint .ci/constraints.txt
INPUTS := pyproject.toml .ci/constraints.txt

help:
	@echo "make demo      train, export, quantize and judge an encoder of digits, then export the real all-MiniLM-L6-v2"
	@echo "make test      lint, types and the whole test suite"
	@echo "make test-edge bundles on emulated devices (ARM64, x86-64 without VNNI), the Dockerfile's steps, processes killed"
	@echo "make test-gpu  the tests that need an NVIDIA GPU, with what is installed: nothing is downloaded"
	@echo "make lint      lint and types alone"
	@echo "make bench     deploykit beside sentence-transformers (builds environments of its own, takes a while)"
	@echo "make clean     remove everything that these commands made"

demo: $(VENV)/.demo-installed
	@$(BIN)/deploykit run recipes/quickstart.toml
	@$(BIN)/deploykit run recipes/minilm.toml

# A test process that dies ends the run: with another in its place the tests that it had are waited for without end.
test: lint
	@echo "== pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0

# What is emulated is set up in build/edge, once. Where qemu is not there it is skipped, and said how to get it.
# KILLS processes are killed for each of eight ways of writing bundles, store and cache.
KILLS ?= 7
test-edge: $(VENV)/.test-installed
	@OMP_NUM_THREADS=1 DEPLOYKIT_KILLS=$(KILLS) $(BIN)/python -m pytest tests/edge tests/bundle/test_killed.py -m "edge or killed" \
	  -rs -p no:cacheprovider --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder --durations 12

# With the environment that is there: a machine with a GPU often has torch, and no network.
test-gpu:
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -m pytest tests/gpu -m gpu -rs -p no:cacheprovider

lint: $(VENV)/.test-installed
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy

bench: $(VENV)/.test-installed
	@$(BIN)/deploykit run recipes/minilm.toml
	@$(BIN)/python benchmarks/text_cpu.py --bundle build/minilm.bundle

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find deploykit tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than what it was installed from, so a second call installs nothing.
$(VENV)/.demo-installed: $(INPUTS) | $(BIN)/python
	@echo "installing into $(VENV): torch, transformers and two engines, about 2 GB; a few minutes the first time"
	@$(INSTALL) --editable ".[all,demo]"
	@touch $@

$(VENV)/.test-installed: $(INPUTS) | $(BIN)/python
	@echo "installing into $(VENV): torch, transformers, two engines and the test tools, about 2 GB; a few minutes the first time"
	@$(INSTALL) --editable ".[all,demo,dev]"
	@touch $(VENV)/.demo-installed $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"deploykit needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: on Debian, apt-get install python3-venv"; exit 1; }
