# A fresh machine needs Python 3.11 (or newer) with pip, and make. Everything else is installed into .venv.
#
#   make demo                                                          from nothing to a before/after table
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu        a smaller download where there is no GPU
#   make test PYTEST="-k gates -n 0"                                   some tests only
#   make test PYTEST="-n 2 --cov=rmuse_interp"                         with the lines that no test runs

.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TORCH_INDEX ?=
# A file is one worker's, files in the order of their names: by number of tests the slowest few would come last, one by one.
PYTEST ?= -n 2 --dist loadfile --no-loadscope-reorder
SMALL := results/small
FIGURES := $(patsubst figures/%.py,%,$(filter-out figures/_%.py,$(wildcard figures/*.py)))

.PHONY: help setup demo smollm2 test lint figures clean

help:  ## this list
	@grep -hE '^[a-z0-9]+:.*## ' Makefile | sed -E 's/^([a-z0-9]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP)  ## create .venv and install the package with the versions of constraints.txt

# Installed once, and again only when the dependencies or their pins change.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	    for python in python3.11 python3; do \
	        if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	            echo "creating $(VENV) with $$($$python --version)"; $$python -m venv $(VENV) && break; \
	        fi; \
	    done; \
	fi
	@$(PY) -m pip --version >/dev/null || \
	    { echo "Python 3.11 or newer with venv and pip is required, as python3.11 or python3" >&2; exit 1; }
	@echo "installing into $(VENV): some minutes, most of them for torch"
	$(PY) -m pip install --quiet --disable-pip-version-check \
	    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup  ## fit both presets on the shipped model, show before and after (results/demo)
	$(VENV)/bin/rmuse demo --out results/demo --overwrite

smollm2: setup  ## fetch the pretrained SmolLM2-135M-Instruct (93 MB) and convert it into the cache, once
	$(VENV)/bin/rmuse models get smollm2

test: lint  ## lint, then all tests and doctests (those on SmolLM2 are skipped, and say so, where it cannot be fetched)
	-$(VENV)/bin/rmuse models get smollm2
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest $(PYTEST)

lint: setup  ## ruff, mypy, import-linter
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# analyses/X.py --small writes $(SMALL)/X.json, figures/X.py draws it there. What is fitted is shared in $(SMALL)/fits, and
# results that are there are drawn as they are: remove $(SMALL), or one file of it, to measure anew. One thread each, two
# at a time: more threads per process only wait for one another. TERM: two progress bars on one line would be none.
figures: setup  ## run every analysis at a small size and draw its figure (results/small)
	@mkdir -p $(SMALL)
	OMP_NUM_THREADS=1 TERM=dumb $(MAKE) --no-print-directory -j 2 $(addprefix drawn-,$(FIGURES))

drawn-demo: $(SMALL)/demo/scores.json
	$(PY) figures/demo.py $(SMALL)/demo --out $(SMALL)

# One analysis, several figures.
drawn-tradeoff drawn-rcr: drawn-%: $(SMALL)/leaderboard.json
	$(PY) figures/$*.py --results $(SMALL)

drawn-%: $(SMALL)/%.json
	$(PY) figures/$*.py --results $(SMALL)

$(SMALL)/demo/scores.json:
	$(VENV)/bin/rmuse demo --out $(SMALL)/demo --limit 24

$(SMALL)/%.json:
	$(PY) analyses/$*.py --small --fits $(SMALL)/fits --out $(SMALL)

.PRECIOUS: $(SMALL)/%.json

clean:  ## remove caches and build outputs; results, .venv and the shipped weights stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
