# pyro_sde: everything a contributor runs. `make` prints this list.
#
# PYTHON       the interpreter that `.venv` is made with (3.11 or newer for the pinned versions below)
# CONSTRAINTS  the pinned versions; `make venv CONSTRAINTS=/dev/null` takes the newest ones instead
# WORKERS      test processes
# ONLY         for `make tutorials`: the numbers of the notebooks to run; all if empty
# REPORT       for `make bench`: the page whose tables are written anew (docs/performance.md); none if empty

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
REPORT ?=
ONLY ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint $(CONSTRAINTS)
RUN_STAMP := $(VENV)/.stamp-run
DEV_STAMP := $(VENV)/.stamp-dev
# The development environment contains the one the quickstart needs.
QUICK_STAMP := $(if $(wildcard $(DEV_STAMP)),$(DEV_STAMP),$(RUN_STAMP))
# The last value of -m wins over the one in pyproject.toml.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv quickstart test test-all pytest lint format types docs bench bench-folds tutorials clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

venv: $(DEV_STAMP)  ## set up .venv with everything a contributor needs

# torch goes first: a build for this machine that pip prefers, or one you installed, is then kept by what follows.
$(RUN_STAMP): pyproject.toml $(CONSTRAINTS)
	@echo "==> setting up $(VENV) to run pyro_sde (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) --editable ".[plots]"
	@touch $@

$(DEV_STAMP): pyproject.toml $(CONSTRAINTS)
	@echo "==> setting up $(VENV) with test, docs and lint tools (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) --editable ".[test,docs,plots,tutorials,dev]"
	@touch $@

quickstart: $(QUICK_STAMP)  ## train a latent SDE on real data; writes quickstart.png and quickstart.nc
	@$(BIN)/python -m pyro_sde quickstart

lint: $(DEV_STAMP)  ## ruff: rules and format
	@echo "==> ruff check"
	@$(BIN)/ruff check .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check .

types: $(DEV_STAMP)  ## pyright on the package
	@echo "==> pyright"
	@$(BIN)/pyright

docs: $(DEV_STAMP)  ## build the documentation into site/; a dead link is a failure
	@echo "==> mkdocs build --strict"
	@said=$$(NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict 2>&1) || { echo "$$said" | grep -v INFO; exit 1; }

pytest: $(DEV_STAMP)
	@echo "==> pytest"
	@$(PYTEST)

test: lint types docs pytest  ## lint, types, docs, then the tests (with doctests and the architecture test)

test-all: lint types docs  ## the same with the slow tests
	@echo "==> pytest, slow tests included"
	@$(PYTEST) -m "not bench"

bench: $(DEV_STAMP)  ## measure speed; 1 thread, ten minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pyro_sde bench $(if $(REPORT),--report $(REPORT))

bench-folds: $(DEV_STAMP)  ## train posteriors on the CVI-DP folds; REPORT=docs/measured.md; six minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pyro_sde bench gaussian_folds $(if $(REPORT),--report $(REPORT))

tutorials: $(DEV_STAMP)  ## run the notebooks in full and save their outputs; ONLY=01 for one of them; half an hour
	@OMP_NUM_THREADS=2 $(BIN)/python tutorials/execute.py $(ONLY)

format: $(DEV_STAMP)  ## let ruff fix what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove caches and builds, keep .venv
	rm -rf site build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
