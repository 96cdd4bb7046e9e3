# Everything runs in a virtual environment in this folder. To use another: make demo PYTHON=python3.12 VENV=.venv312
PYTHON ?= python3
VENV ?= .venv

python := $(VENV)/bin/python

.PHONY: help demo earth faces faces_hour test faults benchmarks format

help:
	@echo 'make demo        install, train on the bundled images (6 minutes on 2 cores), translate the test images'
	@echo 'make earth       like demo, with the longer recipe (60 minutes)'
	@echo 'make faces       install, train SAGAN on the bundled faces (10 minutes), generate some'
	@echo 'make faces_hour  like faces, with the longer recipe (an hour)'
	@echo 'make test        install the development tools too, run lint, types and tests'
	@echo 'make faults      run the tests that take minutes, such as repeatedly killed runs (10 at most, on 2 cores)'
	@echo 'make benchmarks  measure speed and memory against plain PyTorch (half an hour on 2 quiet cores)'
	@echo 'make format      format the code as make test requires'

demo earth: $(VENV)/installed
	$(python) train.py @recipes/$@.txt
	$(python) test.py --name $@
	$(python) -m scripts.score_earth results/$@/test_latest

faces faces_hour: $(VENV)/installed
	$(python) train.py @recipes/$@.txt
	$(python) test.py --name $@

test: $(VENV)/installed-dev
	$(python) -m ruff check
	$(python) -m ruff format --check
	$(python) -m mypy
	$(python) -m pytest

faults: $(VENV)/installed-dev
	$(python) -m pytest -m faults

benchmarks: $(VENV)/installed
	$(python) -m benchmarks

format: $(VENV)/installed-dev
	$(python) -m ruff check --fix
	$(python) -m ruff format

# Building visdom 0.2.4, the last version for Python 3.11, needs pkg_resources, which newer setuptools lack. Old and
# new pip disagree on how to limit setuptools in an isolated build, so the build uses the version installed here.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install "setuptools>=77,<81"
	$(python) -m pip install --no-build-isolation .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(python) -m pip install --no-build-isolation ".[dev]"
	@touch $@
