# The one entrance to the tools. `make` lists what there is.
#
#   VENV=path    the virtual environment to use (made when missing)
#   PYTHON=path  the interpreter to make it with (3.11 or newer)
#   TORCH=cpu    install torch for this backend, through uv; without it pip takes the registry's default build

VENV ?= .venv
PYTHON ?= python3
TORCH ?=
BIN := $(VENV)/bin
# A test process a core, each with files of its own: what a file's tests share is made once. tests/conftest.py has their order.
PROCESSES := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Of tests that take minutes each, a process takes the next one that is left.
TEST_BY_TEST := -n logical --maxprocesses 4 --dist load --maxschedchunk 1

ifeq ($(TORCH),)
INSTALLER := $(BIN)/python
INSTALL := $(BIN)/python -m pip install --quiet
else
INSTALLER := $(BIN)/uv
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=$(TORCH)
endif

.DEFAULT_GOAL := help
.PHONY: help quickstart test torture lint format types imports check bench clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

quickstart: $(VENV)/.with-train ## ingest, compress, materialize and report on the sample adapters
	$(BIN)/lorareg quickstart

test: $(VENV)/.with-test ## run the tests (ARGS="-k name" for some of them, ARGS="-n 0" in one process)
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest $(PROCESSES) $(ARGS)

torture: $(VENV)/.with-test ## the long form of tests/torture, and its figures into docs/reliability.md
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_BY_TEST) tests/torture --torture long --torture-report build/torture.json $(ARGS); \
	status=$$?; $(BIN)/python tests/torture/write_results.py build/torture.json docs/reliability.md; exit $$status

lint: $(VENV)/.with-dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.with-dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.with-dev $(VENV)/.with-train ## mypy --strict
	mkdir -p build/types
	ln -sfn ../.. build/types/lorareg
	$(BIN)/mypy

imports: $(VENV)/.with-dev ## who may import whom
	PYTHONPATH=$(CURDIR) $(BIN)/lint-imports

check: lint types imports test ## all of the above

bench: $(VENV)/.with-train ## compare with the baselines (ARGS="FOLDER" for other adapters)
	$(BIN)/python bench/baselines.py $(ARGS)

clean: ## remove what the tools made
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info lorareg-quickstart
	find . -name __pycache__ -prune -exec rm -rf {} +

# One stamp per set of extras: fast when nothing changed, made anew when pyproject.toml did.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BIN)/uv: | $(BIN)/python
	$(BIN)/python -m pip install --quiet uv

$(VENV)/.with-train: pyproject.toml | $(INSTALLER)
	$(INSTALL) -e '.[train]'
	@touch $@

$(VENV)/.with-test: pyproject.toml | $(INSTALLER)
	$(INSTALL) -e '.[train,test]'
	@touch $@ $(VENV)/.with-train

$(VENV)/.with-dev: pyproject.toml | $(INSTALLER)
	$(INSTALL) -e '.[train,test,dev]'
	@touch $@ $(VENV)/.with-train $(VENV)/.with-test
