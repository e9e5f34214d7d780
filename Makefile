# Every target makes the virtual environment if it is not there, installs again only when pyproject.toml or
# constraints.txt has changed, and can be run again at any time.

PYTHON ?= python3
VENV ?= .venv
# Passed to pip, for instance to take the CPU build of torch on Linux:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_FLAGS ?=
# Passed to pytest, for instance: make test PYTEST_FLAGS="-x -q". The tests share the cores out; one after another: -n 0
PYTEST_FLAGS ?=
PARALLEL := -n auto --maxprocesses 8 --dist worksteal
PORT ?= 8000

COVERED := tests/folding tests/parity
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint serve docs clean

help: ## show this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(INSTALLED) ## train, fold, export, prove, serve and predict on real handwritten digits
	$(BIN)/python scripts/demo.py

test: lint ## all that CI runs: lint, types, import rules, tests with branch coverage
	# Measuring coverage is slow: it is done where it is wanted, on the fold core and the parity suite.
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term $(PYTEST_FLAGS) $(COVERED)
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_FLAGS) $(addprefix --ignore=,$(COVERED))

lint: $(INSTALLED) ## ruff (rules and format), mypy, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

serve: $(INSTALLED) ## serve the models of this checkout on http://127.0.0.1:$(PORT)
	$(BIN)/bnfold serve models --port $(PORT)

docs: $(INSTALLED) ## write docs/cli.md, docs/settings.md and the dashboard again from the code
	$(BIN)/python scripts/write_cli_docs.py
	$(BIN)/python scripts/write_settings_docs.py
	$(BIN)/python scripts/write_recipe_docs.py
	$(BIN)/python scripts/write_dashboard.py

clean: ## remove the virtual environment, caches, and what was built
	rm -rf $(VENV) build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "bnfold needs Python 3.11 or later; found $$($(PYTHON) --version 2>&1). Say: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c constraints.txt -e '.[torch,dev]'
	@touch $@
