# `make demo` and `make test` set up .venv by themselves, once; nothing is installed elsewhere.
#
#   make demo ARGS="--seeds 3"      options for the command
#   make test ARGS="-k bm25 -x"     options for pytest
#   make demo PYTHON=python3.12     another interpreter, 3.11 or newer
#
# On Linux `pip install torch` fetches a CUDA build of several GB. Without a GPU, take the small
# build instead:
#
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check \
	--constraint constraints-dev.txt
ARGS ?=
# Left empty, the first of these that will do is taken.
PYTHON ?=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python)
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check format wheel clean

help: ## this list
	@echo "steper: multi-step retrieval-augmented reasoning for small language models"; echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo; echo 'Options go in ARGS: make demo ARGS="--seeds 3"; make test ARGS="--slow -k wheel".'

demo: $(VENV)/installed ## set up, then the whole road offline: one table and a report, in minutes
	@$(BIN)/steper demo $(ARGS)

test: $(VENV)/installed-dev ## set up, then all tests (ARGS=--slow adds the long ones)
	@$(BIN)/python -m pytest --quiet $(ARGS)

check: $(VENV)/installed-dev ## format, lint, strict types, import floors
	@$(BIN)/ruff format --quiet --check . || { echo 'Not formatted. Run: make format'; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m pytest --quiet -p no:cacheprovider tests/unit/test_import_floors.py

format: $(VENV)/installed-dev ## format, and mend what the linter can mend
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

wheel: $(BIN)/python ## the package as dist/*.whl
	@$(BIN)/python -m pip wheel --quiet --no-input --disable-pip-version-check \
		--no-deps --wheel-dir dist .
	@ls dist/*.whl

clean: ## remove .venv, builds and caches; runs/ stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +

# ---- set-up ------------------------------------------------------------------------------------

# A half-made environment would pass for a whole one the next time, and one whose interpreter has
# gone still has its stamps.
$(BIN)/python:
	@rm -rf $(VENV); for python in $(CANDIDATES); do \
		if $$python -c '$(USABLE)' 2>/dev/null; then \
			echo "Making $(VENV) with $$($$python --version) ($$(command -v $$python))"; \
			$$python -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); exit 1; \
		fi; \
	done; { \
	echo 'No usable Python found. steper needs Python 3.11 or newer with its venv module.'; \
	echo 'Tried: $(CANDIDATES).'; \
	echo 'Debian and Ubuntu: apt install python3-venv. Elsewhere: https://www.python.org/downloads,'; \
	echo 'or name an interpreter: make demo PYTHON=/path/to/python3.12'; } >&2; \
	exit 1

$(VENV)/installed: pyproject.toml constraints-dev.txt $(BIN)/python
	@echo 'Installing steper into $(VENV): some minutes the first time, torch is large'
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints-dev.txt $(BIN)/python
	@echo 'Installing steper and its tools into $(VENV): some minutes the first time, torch is large'
	@$(PIP) --editable '.[dev]'
	@touch $(VENV)/installed $@
