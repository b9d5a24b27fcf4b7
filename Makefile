# `make` lists the targets. Each makes .venv first if it has to.
#
#   make figures CORES=4 ARGS="--configfile experiments/NAME.yaml"
#   make test ARGS="-m 'not slow'"
#   make lock ARGS=--upgrade

.DEFAULT_GOAL := help
.PHONY: help env demo figures report docs test test-cluster check lock

IS_SUPPORTED := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14; do \
	$$python $(IS_SUPPORTED) 2>/dev/null && echo $$python && exit; done; echo python3)
CORES ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# Files of tests that run at the same time: one more than cores, since many wait for processes.
WORKERS ?= $(shell test $(CORES) -lt 4 && echo $$(($(CORES) + 1)) || echo 4)
REPORT ?= results/default/report.html
UV ?= uv
ARGS ?=

PIP := .venv/bin/python -m pip --disable-pip-version-check
# Kept beside the bytecode, the digests of the code save each start of Snakemake seconds.
unexport PYTHONDONTWRITEBYTECODE
# Rules call `ontogeny` and `snakemake` by name.
IN_ENV := PATH="$(CURDIR)/.venv/bin:$$PATH"

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s%s\n", $$1, $$2}' Makefile

env: .venv/.complete ## make the environment in .venv from the lock

.venv/.complete: envs/requirements.lock envs/torch.txt pyproject.toml
	@$(PYTHON) $(IS_SUPPORTED) 2>/dev/null || { echo "Python 3.11 to 3.14 is needed, found" \
		"$$($(PYTHON) --version 2>/dev/null || echo none): make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(PIP) install --no-compile --no-deps --require-hashes -r envs/requirements.lock
	$(PIP) freeze --all > .venv/constraints.txt
	$(PIP) install --no-compile -r envs/torch.txt -c .venv/constraints.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@# pip compiles on one core. Some packages hold templates that are not Python yet.
	@.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	$(PIP) check
	@touch $@

demo: env ## run a small experiment: 3 to 9 minutes on 2 cores
	$(IN_ENV) snakemake --cores $(CORES) --configfile experiments/demo.yaml $(ARGS)

figures: env ## run the default experiment, from raw text to figures
	$(IN_ENV) snakemake --cores $(CORES) $(ARGS)

report: env ## collect finished figures on one self-contained page
	$(IN_ENV) snakemake --report $(REPORT) $(ARGS)

docs: .venv-docs/.complete ## build the pages as a site, in build/site
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo "$(CURDIR)/build/site/index.html"

.venv-docs/.complete: envs/docs.lock
	$(PYTHON) -m venv --clear .venv-docs
	.venv-docs/bin/python -m pip --disable-pip-version-check install -q --require-hashes -r envs/docs.lock
	@touch $@

test: env ## run the tests
	$(IN_ENV) python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-cluster: env ## run the tiny experiment on a SLURM on this machine (only as root on Debian)
	$(IN_ENV) python -m pytest -m cluster tests/workflow/test_cluster.py $(ARGS)

check: env ## check style, types and the workflow
	$(IN_ENV) ruff check .
	$(IN_ENV) ruff format --check .
	$(IN_ENV) mypy
	$(IN_ENV) snakefmt --check Snakefile rules
	$(IN_ENV) snakemake --lint

lock: ## pin every dependency again (needs uv)
	@command -v $(UV) >/dev/null || { echo "uv is needed: pip install uv, or make lock UV=/path/to/uv" >&2; exit 1; }
	$(UV) pip compile pyproject.toml --extra dev --extra cluster --output-file envs/requirements.lock \
		--universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
		--no-emit-package torch --custom-compile-command "make lock" $(ARGS)
	$(UV) pip compile envs/docs.in --output-file envs/docs.lock \
		--universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" $(ARGS)
