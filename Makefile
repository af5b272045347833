# `make demo` and `make test` do all the set-up: they need Python 3.11 or newer and make, and write only inside this folder.
# PYTHON picks the interpreter, VENV the environment, WORKERS the number of test processes (0: one, in this process).
PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-cpus test-edge test-gpu lint bench clean

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --constraint .ci/constraints.txt
INPUTS := pyproject.toml .ci/constraints.txt

help:
	@echo "make demo      train, export, quantize and judge an encoder of digits, then export the real all-MiniLM-L6-v2"
	@echo "make test      lint, types and the whole test suite"
	@echo "make test-cpus what depends on the kind of CPU, as on CPUs with AVX2 alone and with VNNI without bf16"
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

# oneDNN, inside torch and OpenVINO, obeys a limit of instructions, and deploykit reads it as the CPU's own. ONNX Runtime
# obeys none, and OpenVINO's int8 dies of this one on newer CPUs: these run on an emulated CPU, if qemu is here.
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1
VNNI := ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI OMP_NUM_THREADS=1
EMULATED := tests/precisions/test_int8_dynamic.py tests/quantize/test_static.py tests/targets/test_openvino.py
QEMU := $(firstword $(shell command -v qemu-x86_64-static qemu-x86_64 2>/dev/null))
test-cpus: $(VENV)/.test-installed
	@echo "== AVX2 alone: training and plans"
	@$(AVX2) $(BIN)/python -m pytest tests/pretrain tests/pipeline/test_plan.py tests/sources/test_checkpoint.py -q \
	  --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0
	@echo "== VNNI without bf16"
	@$(VNNI) $(BIN)/python -m pytest tests/pretrain tests/pipeline tests/precisions tests/quantize tests/targets tests/test_auto.py \
	  tests/test_export.py tests/test_minilm.py -q --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0
ifneq ($(QEMU),)
	@echo "== AVX2 alone, emulated: the engines' int8"
	@printf '%s\n' $(EMULATED) | $(AVX2) xargs -P $(or $(filter-out 0,$(WORKERS)),1) -n 1 \
	  $(QEMU) -cpu Haswell $(BIN)/python -m pytest -q -p no:cacheprovider
else
	@echo "== the emulated part is left out: qemu-x86_64 is not here (Debian: qemu-user-static)"
endif

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
