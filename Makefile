# make quickstart   environment, then the main job end to end
# make test         environment, then all tests but those of minutes, make test-slow, and those on a Slurm
# make test-slurm   as root: a real Slurm of two nodes on this machine, installed by apt-get, and the tests on it
# make test-kubernetes   an API server of Kubernetes, built from Debian's source, and the tests on it
# make check        environment, then format, lint, types
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup quickstart test test-slow test-slurm test-kubernetes check format

setup: .venv/done

.venv/done: setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "shardtune needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch .venv/done

quickstart: setup
	$(BIN)/shardtune quickstart

test: setup
	$(BIN)/python -m pytest tests -m 'not slow and not slurm and not kubernetes' --numprocesses 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest tests -m 'slow and not slurm and not kubernetes' --numprocesses 2 --dist loadfile

test-slurm: setup
	-slurm/devcluster/install.sh
	$(BIN)/python -m pytest tests/slurm tests/test_scripts.py --numprocesses 2 --dist load

test-kubernetes: setup
	tests/kubernetes/install.sh
	$(BIN)/python -m pytest tests/kubernetes

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
