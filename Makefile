# Every target that runs something sets up .venv first, once; a changed lock file sets it up again.
PYTHON ?= $(firstword $(shell command -v python3.11) python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# uv from the machine where there is one, else the environment's own.
UV := $(firstword $(shell command -v uv) $(BIN)/uv)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart check test test-integration test-all audit bench clean
# Stages share the cores of one machine.
.NOTPARALLEL:
# Empty: Python keeps the bytecode of our code. Where a container sets it, each process of a job
# compiles the code anew, 0.8 of the 5.7 s of CPU time that its imports take.
export PYTHONDONTWRITEBYTECODE :=

help: ## this list
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

setup: $(STAMP) ## create .venv from requirements.lock (Python 3.11, packages checked by hash)

quickstart: setup ## make a small data set, then prepare, train, evaluate, register and predict on this machine
	$(BIN)/python -m cluster.prepare.synthetic data/quickstart
	$(BIN)/retinaray run --config pipelines/recipes/quickstart.yaml

# Two processes, each with a Ray cluster of its own: many tests wait for processes to start, and
# then the other one has the cores. A file stays in one process; tests/conftest.py gives the order.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=40

test: setup ## unit tests, minutes; no network
	$(PYTEST)

test-integration: setup ## tests that start real servers, clusters and a browser
	$(PYTEST) -m integration

test-all: setup ## both in one session, where they share Ray clusters and data sets
	$(PYTEST) -m "not gpu"

check: setup ## lint, format, types, imports between rooms, spelling; a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/basedpyright

audit: setup ## licences and hashes of all that the lock file installs, and whether it fits together
	$(BIN)/python -m pytest -q -n 0 tests/test_licences.py
	$(UV) pip check --python $(BIN)/python

bench: setup ## images/s of the decoder, prepare, the stream, the step, AP, prediction and the whole pipeline, each beside what it competes with
	$(BIN)/python tests/benchmarks/decode.py
	$(BIN)/python tests/benchmarks/prepare.py
	$(BIN)/python tests/benchmarks/ingest.py --parts rates epochs train
	$(BIN)/python tests/benchmarks/step.py
	$(BIN)/python tests/benchmarks/scoring.py
	$(BIN)/python tests/benchmarks/predict.py --parts rates tiles overlap
	$(BIN)/python tests/benchmarks/pipeline.py

clean: ## remove .venv and caches; data/ and runs/ stay
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
	find detector cluster tune pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is missing or older than 3.11; say make PYTHON=/path/to/python3.11"; exit 1; }
	@if command -v uv > /dev/null; then uv venv --quiet --allow-existing --python $(PYTHON) $(VENV); \
	elif $(PYTHON) -c 'import ensurepip' 2> /dev/null; then $(PYTHON) -m venv $(VENV); \
	else echo "$(PYTHON) has no venv module; install it: apt-get install python3-venv"; exit 1; fi

# Bytecode is compiled here, once (28 s): where PYTHONDONTWRITEBYTECODE is set, as in many containers, every process of a job would compile torch anew,
# and a training then needs 72 s instead of 28 from the command to its first step.
$(STAMP): requirements.lock pyproject.toml | $(BIN)/python
	@command -v uv > /dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(UV) pip sync --compile-bytecode --require-hashes --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python -e .
	@touch $@
