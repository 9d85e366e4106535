# make demo         set up, then train, prune, forget and report on scikit-learn's digits
# make test         set up, then lint, type checks and tests
# make test-fast    a part of the tests, in two processes at once: what takes little time
# make test-lowest  a part of the tests with the lowest versions that pyproject.toml allows, in an environment of its own
# make test-cpus    all tests with every vector width of this processor, with one thread and with two
# make test-vision  tests/vision (timm, torchvision) in an environment of its own, with a torch that torchvision fits (7 GB)
# make test-engines tests of plans on Dask and Ray, and of stores on S3 (moto's server), in an environment of its own
# make test-gpu     what only a GPU shows, in ten minutes: PYTHON has a torch for CUDA (an environment of its own)
# make docs         set up, then the documentation site in build/docs
# make pages        write what is generated from the registries: docs/methods.md, tables in README.md and other pages of docs
# make constraints  write constraints.txt from scratch, with the newest versions
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST ?= .venv-lowest
FRESH ?= .venv-fresh
GPU ?= .venv-gpu
VISION ?= .venv-vision
ENGINES ?= .venv-engines
INSTALL := -m pip install --quiet --disable-pip-version-check
CODE := src tests benchmarks checker .ci

.PHONY: demo test test-fast test-lowest test-cpus test-vision test-engines test-gpu docs pages constraints lint format clean

$(STAMP): pyproject.toml constraints.txt checker/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) -c constraints.txt -e ./checker -e '.[dev]'
	touch $(STAMP)

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt checker/pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python $(INSTALL) -c constraints-lowest.txt -e ./checker -e '.[test]'
	touch $(LOWEST)/.installed

# The build of torch for CUDA, which also runs on the CPU: torchvision has none for the CPU build in constraints.txt.
$(VISION)/.installed: pyproject.toml checker/pyproject.toml
	$(PYTHON) -m venv $(VISION)
	$(VISION)/bin/python $(INSTALL) 'torch==2.14.1' 'torchvision==0.29.*' -e ./checker -e '.[test,timm]'
	touch $(VISION)/.installed

# s3fs needs python-dateutil 2, so the tested versions of `dev` do not hold here.
$(ENGINES)/.installed: pyproject.toml checker/pyproject.toml
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python $(INSTALL) -e ./checker -e '.[test,dask,ray,remote]' 'moto[s3]' flask flask-cors
	touch $(ENGINES)/.installed

# torch for CUDA, as PyPI has it; everything else as the tests need it.
$(GPU)/.installed: pyproject.toml checker/pyproject.toml
	$(PYTHON) -m venv $(GPU)
	$(GPU)/bin/python $(INSTALL) -e ./checker -e '.[test]'
	touch $(GPU)/.installed

demo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/expunge demo --output demo  # networks this small gain nothing from a second thread

test: lint
	$(BIN)/python -m pytest

test-fast: $(STAMP)
	$(BIN)/python .ci/fast_lane.py

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest $(or $(TESTS),tests/cli tests/core tests/data tests/report tests/workflow checker/tests)

test-cpus: $(STAMP)
	$(BIN)/python .ci/test_cpus.py $(TESTS)

test-vision: $(VISION)/.installed
	$(VISION)/bin/python .ci/vision.py tests/vision/result.json

test-engines: $(ENGINES)/.installed
	$(ENGINES)/bin/python -m pytest tests/experiments/engines tests/experiments/store

test-gpu: $(GPU)/.installed
	$(GPU)/bin/python .ci/gpu.py tests/device/gpu.json $(GPU_ARGUMENTS)

pages: $(STAMP)
	$(BIN)/python .ci/pages.py

constraints:
	rm -rf $(FRESH)
	$(PYTHON) -m venv $(FRESH)
	$(FRESH)/bin/python $(INSTALL) -e ./checker -e '.[dev,docs]'
	$(FRESH)/bin/python .ci/constraints.py --write
	rm -rf $(FRESH)

$(VENV)/.docs: $(STAMP)
	$(BIN)/python $(INSTALL) -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -q -W --keep-going -c docs . build/docs

lint: $(STAMP)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

clean:
	rm -rf $(VENV) $(LOWEST) $(FRESH) $(VISION) $(ENGINES) $(GPU) build demo .pytest_cache .mypy_cache .ruff_cache
