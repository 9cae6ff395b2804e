# Everything a person runs, by name; `make` alone lists it.

PYTHON ?= $(shell command -v python3.11 || echo python3)
HARDWARE ?= auto
N ?= 1
RUN ?= default
ARGS ?=
PROMPTS ?=

PY := .venv/bin/python
# One thread a process: two of them use two cores.
# --no-loadscope-reorder: those that start Ray are the first.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --no-loadscope-reorder
STUDY := $(PY) -m scripts.study
ON = $(if $(findstring hardware=,$(ARGS)),,hardware=$(HARDWARE))
STAMP := .venv/.sparring-setup-$(HARDWARE)

export HF_HUB_DISABLE_TELEMETRY := 1
# Engines of 8,000 modules start in half the time from compiled bytecode: always keep it.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup iter test test-all lint lock bench bench-gpu study-smoke study-small study-lr clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12
	@echo 'example:    make iter N=3 RUN=mine ARGS="experiment=sppo prompts.limit=64"'
	@echo 'variables:  N iterations, RUN name of the run, ARGS overrides, PROMPTS a file, PYTHON a Python 3.11, HARDWARE auto|cpu|cuda'

setup: $(STAMP)  ## creates .venv from the lock of this hardware and prepares the embedded models

$(STAMP): requirements/cpu.txt requirements/cuda.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo 'set-up: "$(PYTHON)" is not a Python 3.11: install one, or say which: make setup PYTHON=/path/to/python3.11' >&2; \
	  exit 1; }
	@$(PYTHON) -B -m scripts.install $(HARDWARE)

iter: setup  ## runs N iterations of the run RUN, redoing nothing that is done
	@.venv/bin/sparring run iterations=$(N) run.name=$(RUN) $(ON) $(ARGS)

test: setup  ## unit and parity tests, and a few kills
	$(PYTEST) -m "not slow" $(ARGS)

test-all: setup  ## all tests, every kill among them
	$(PYTEST) $(ARGS)

lint: setup  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy sparring scripts benchmarks tests

lock:  ## resolves both locks anew from pyproject.toml; ARGS=--upgrade takes newer versions
	@$(PYTHON) -B -m scripts.lock $(ARGS)

bench: setup  ## every benchmark, one after another; ARGS=--smallest tries whether all parts run, in ten minutes
	@.venv/bin/sparring run iterations=1 run.name=default hardware=$(HARDWARE)
	@failed=0; for name in annotate game sample train; do $(PY) -m benchmarks.$$name $(ARGS) || failed=1; done; exit $$failed

bench-gpu: setup  ## what only a GPU can show, in under ten minutes on one of 40 GB; ARGS=--smallest tries it on the CPU
	@$(PY) -m benchmarks.gpu --json bench-gpu.json --markdown bench-gpu.md $(ARGS)

study-smoke: setup  ## two arms, one seed, two small iterations: do studies run here? 12 minutes
	@$(STUDY) smoke $(ON) $(ARGS)

study-small: setup  ## six arms, two seeds, three iterations on the prompts of the file PROMPTS: four to five hours on two cores; resumes
	@$(STUDY) small $(ON) $(if $(PROMPTS),prompts=file prompts.path=$(PROMPTS)) $(ARGS)

study-lr: setup  ## learning rate x global batch, six trainings on the same samples: 51 minutes
	@$(STUDY) sweep $(ON) $(if $(PROMPTS),prompts=file prompts.path=$(PROMPTS)) $(ARGS)

clean:  ## removes caches and build output; runs, store and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
