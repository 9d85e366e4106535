# make demo    set up, then train, prune, forget and report on scikit-learn's digits
# make test    set up, then lint, type checks and tests
# make docs    set up, then the documentation site in build/docs
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test docs lint format clean

$(STAMP): pyproject.toml constraints.txt checker/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ./checker -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/expunge demo --output demo  # networks this small gain nothing from a second thread

test: lint
	$(BIN)/python -m pytest

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -q -W --keep-going -c docs . build/docs

lint: $(STAMP)
	$(BIN)/ruff format --check src tests benchmarks checker
	$(BIN)/ruff check src tests benchmarks checker
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format src tests benchmarks checker
	$(BIN)/ruff check --fix src tests benchmarks checker

clean:
	rm -rf $(VENV) build demo .pytest_cache .mypy_cache .ruff_cache
