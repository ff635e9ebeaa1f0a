# Daily commands. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export DO_NOT_TRACK = true
export MLFLOW_DISABLE_TELEMETRY = true

.DEFAULT_GOAL := help
.PHONY: help setup demo test check audit bench drills docs up clean

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv and install everything, pinned by constraints.txt

# torch goes first and exactly: a range may resolve to a build with gigabytes of CUDA packages.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "luna needs Python 3.11 or newer: make setup PYTHON=python3.11")'
	@echo "setting up $(VENV) (a few minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

demo: $(READY)  ## synthetic scans -> three trained models -> evaluated table, under 10 minutes
	@$(BIN)/luna demo

test: $(READY)  ## unit tests and one small flow: CPU, offline, a few minutes
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(READY)  ## lint, types, import contract, audit, then the real and slow tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.audit
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations 15 -m "real or slow"

audit: $(READY)  ## known vulnerabilities of what is installed, where an advisory service can be reached
	@$(BIN)/python -m tests.audit

$(VENV)/.bench: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]' -c constraints.txt
	@touch $@

bench: $(VENV)/.bench  ## paired timings of the data path and the models, beside MONAI and diskcache
	@$(BIN)/python -m tests.benchmarks.run

drills: $(READY)  ## kill, starve and lock out a tiny pipeline, and write docs/drills.md: forty minutes
	@$(BIN)/python -m tests.drills.run

docs: $(READY)  ## write docs/api.md, then run the documents' commands on tiny scans: half an hour
	@$(BIN)/python -m tests.docs.api
	@$(BIN)/python -m tests.docs.run

up: $(READY)  ## Prefect server, work pool, worker and MLflow UI, until Ctrl-C
	@$(BIN)/luna up

clean:  ## remove the environment, caches and everything under artifacts/ (asks nothing)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache *.egg-info
	find artifacts -mindepth 1 ! -name README.md -delete
