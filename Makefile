# make install | torchrec | fit | test | lint | format | reliability | clean
#
# PYTHON       the interpreter to build .venv with (3.11 or newer)
# TORCH_INDEX  where to take torch from; empty: the default index, whose torch for Linux is the CUDA build.
#              Without a GPU:  make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
# EXTRAS       optional dependencies to install: dev, bench, spark (as in EXTRAS=dev,bench)
# FBGEMM       the kernels under TorchRec; with a GPU:  make torchrec FBGEMM=fbgemm-gpu==1.8.0
# FIT_ARGS     more arguments of `make fit`, as in: make fit FIT_ARGS="--trainer.max_epochs 1"
# PYTEST_ARGS  how pytest runs; one process: make test PYTEST_ARGS=

PYTHON ?= python3
TORCH_INDEX ?=
EXTRAS ?= dev
FBGEMM ?= fbgemm-gpu-cpu==1.8.0
FIT_ARGS ?=
PYTEST_ARGS ?= -n auto --dist loadscope

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.DEFAULT_GOAL := help
.PHONY: help install torchrec fit test lint format reliability clean

help:
	@awk '/^#/ { sub(/^# ?/, ""); print; next } { exit }' Makefile

install: $(STAMP)

# The stamp is newer than what it was made from, so a second `make install` does nothing.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, but $(PYTHON) is older: make install PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt pip setuptools
	$(PIP) install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) torch
	PYTHONWARNINGS=ignore $(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $@

# Sharded tables (docs/torchrec.md). TorchRec asks for an old torchmetrics, which nothing here needs, and for the GPU's
# kernels also where there is no GPU; hence without what it asks for: the extra has what it needs.
torchrec: install
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[torchrec]'
	$(PIP) install --quiet --no-deps torchrec==1.8.0 $(FBGEMM)

fit: install
	$(BIN)/python cli.py fit --config ablations/kunlun.yaml $(FIT_ARGS)

test: install lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What holds when a run is killed, told to leave or left without a disk (docs/reliability.md), and of two ranks
# (docs/scaling.md); takes long.
reliability: install
	KUNLUN_LONG=1 $(BIN)/python -m pytest tests/training/test_exact_resume.py
	$(BIN)/python -m benchmarks.reliability
	$(BIN)/python -m benchmarks.data_parallel

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
