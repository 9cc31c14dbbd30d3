# `make tune` tunes the training loop of mm_rec; `make test` runs every check. Both set up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: tune test notebook clean

tune: $(INSTALLED)
	$(BIN)/python -m autotune run

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'not alone' --numprocesses 4 --dist worksteal
	$(BIN)/python -m pytest -m alone

notebook: $(INSTALLED)
	$(BIN)/python -m nbconvert --execute --to html notebooks/inspect_study.ipynb

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "autotune needs Python 3.11 or newer; name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
