# Everything runs in a virtual environment in this folder. To use another: make demo PYTHON=python3.12 VENV=.venv312
PYTHON ?= python3
VENV ?= .venv
VENV_OLDEST ?= .venv-oldest

python := $(VENV)/bin/python
oldest := networks models losses optimization weights init_from infer sagan cut continue distributed decoders cli
# Building visdom 0.2.4, the last version for Python 3.11, needs pkg_resources, which newer setuptools lack. Old and
# new pip disagree on how to limit setuptools in an isolated build, so the build uses the version installed here.
setuptools := "setuptools>=77,<81"
install := -m pip install --no-build-isolation

.PHONY: help show demo chart emoji cats cats_hour test test-oldest faults benchmarks format

help:
	@echo 'make show        install, translate bundled images and make cats with bundled weights'
	@echo 'make demo        install, train on the bundled images (5 minutes on 2 cores), translate the test images'
	@echo 'make chart       like demo, with the longer recipe (60 minutes)'
	@echo 'make emoji       stickers to figures on a stage (60 minutes)'
	@echo 'make cats        install, train SAGAN on the bundled cats (10 minutes), generate some'
	@echo 'make cats_hour   like cats, with the longer recipe (an hour)'
	@echo 'make test        install the development tools too, run lint, types and tests'
	@echo 'make test-oldest download PyTorch 2.6 into .venv-oldest (5 GB), run the tests that depend on it most'
	@echo 'make faults      run the tests that take minutes, such as repeatedly killed runs (10 at most, on 2 cores)'
	@echo 'make benchmarks  measure speed and memory against plain PyTorch (half an hour on 2 quiet cores)'
	@echo 'make format      format the code as make test requires'

show: $(VENV)/installed
	$(python) test.py --weights weights/chart_AtoB.safetensors --dataroot datasets/chart/testA --preprocess none --num_test 20
	$(python) test.py --weights weights/emoji_AtoB.safetensors --dataroot datasets/emoji/testA --preprocess none --num_test 20
	$(python) test.py --weights weights/cats.safetensors --seeds 0-3

demo chart emoji: $(VENV)/installed
	$(python) train.py @recipes/$@.txt
	$(python) test.py --name $@ --preprocess none --metrics kid,l1,ssim,content

cats cats_hour: $(VENV)/installed
	$(python) train.py @recipes/$@.txt
	$(python) test.py --name $@

test: $(VENV)/installed-dev
	$(python) -m ruff check
	$(python) -m ruff format --check
	$(python) -m mypy
	$(python) -m pytest -n auto --dist loadfile

# By hand, not in CI: it downloads gigabytes.
test-oldest: $(VENV_OLDEST)/installed
	$(VENV_OLDEST)/bin/python -m pytest $(oldest:%=tests/test_%.py)

faults: $(VENV)/installed-dev
	$(python) -m pytest -m faults -n auto --dist loadfile

benchmarks: $(VENV)/installed
	$(python) -m benchmarks

format: $(VENV)/installed-dev
	$(python) -m ruff check --fix
	$(python) -m ruff format

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install $(setuptools)
	$(python) $(install) ".[fast,formats,metrics]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(python) $(install) ".[dev,fast,formats,metrics,medical,geo,export,hub]"
	@touch $@

# Without the optional libraries, whose wheels are built for newer versions of PyTorch.
$(VENV_OLDEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV_OLDEST)
	$(VENV_OLDEST)/bin/python -m pip install $(setuptools)
	$(VENV_OLDEST)/bin/python $(install) ".[dev,metrics]" torch==2.6.0 torchvision==0.21.0
	@touch $@
