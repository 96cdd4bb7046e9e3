# Everything runs in a virtual environment in this folder. Others: make demo PYTHON=python3.12 VENV=.venv312
PYTHON ?= python3
VENV ?= .venv

python := $(VENV)/bin/python

.PHONY: help demo earth faces faces_hour test faults benchmarks format

help:
	@echo 'make demo        install, train on the bundled pictures (6 minutes on 2 cores), translate the test pictures'
	@echo 'make earth       the same with the longer recipe (60 minutes)'
	@echo 'make faces       train SAGAN on the bundled faces (10 minutes), make some'
	@echo 'make faces_hour  the same with the longer recipe'
	@echo 'make test        install the development tools as well, then lint, types and tests'
	@echo 'make faults      runs that are killed over and over, and other tests that take minutes (10 at most, on 2 cores)'
	@echo 'make benchmarks  speed and memory against plain PyTorch (half an hour on 2 quiet cores)'
	@echo 'make format      put the code into the form that make test asks for'

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

# To build visdom 0.2.4, the last one for Python 3.11, takes pkg_resources, which newer setuptools lack. Old and new pip
# disagree on how to bound the setuptools of an isolated build; building with the one installed here suits both.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install "setuptools>=77,<81"
	$(python) -m pip install --no-build-isolation .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(python) -m pip install --no-build-isolation ".[dev]"
	@touch $@
