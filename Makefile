# `make` alone lists what there is to make. Everything runs in .venv, which the first target that
# needs it creates from requirements.lock, and refreshes when that file or pyproject.toml changes.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help .venv system browser doctor docs demo demo-state test soak lint bench clean

PYTHON ?= python3
BIN := .venv/bin
DATA := $(or $(DEFLOW_DATA),data)
CORES := $(shell getconf _NPROCESSORS_ONLN)
LAUNCH := $(BIN)/accelerate launch --quiet --config_file configs/accelerate/cpu.yaml --num_cpu_threads_per_process $(CORES)

# What MuJoCo draws with where there is no screen and no GPU, by the names of Debian and Ubuntu.
GL_PACKAGES := libegl1 libgl1 libosmesa6
DRAWS := $(BIN)/python -c 'from deflow_vision.envs.rendering import probe; probe()'

# What the tests open reports with, by Debian's name: 440 MB on disk with all that it needs.
BROWSER := chromium-headless-shell
# A server that says nothing for 30 seconds is given up.
PATIENT_APT := apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30

help: ## list the targets
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.venv: .venv/installed ## make or refresh the virtual environment (PYTHON=python3.12 picks another Python)

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing the packages of requirements.lock into .venv: about 6 GB on disk, once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

system: .venv ## bring the GL libraries that MuJoCo draws with, where they are missing
	@if $(DRAWS) 2>/dev/null; then exit 0; fi; \
	echo "MuJoCo cannot draw on this machine; it needs $(GL_PACKAGES)"; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "Install them, for example: sudo apt-get install $(GL_PACKAGES)"; exit 1; \
	fi; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -qq -y --no-install-recommends $(GL_PACKAGES) >/dev/null; \
	$(DRAWS) 2> >(tail -n 3 >&2)

browser: ## bring the browser that tests open reports in, where it can be had; they do without
	@if command -v $(BROWSER) chromium chromium-browser google-chrome >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "No Chromium: tests that open reports are skipped; apt-get install $(BROWSER) brings it"; exit 0; \
	fi; \
	{ $(PATIENT_APT) update && DEBIAN_FRONTEND=noninteractive \
	  $(PATIENT_APT) install -y --no-install-recommends $(BROWSER); } >/dev/null || \
	echo "$(BROWSER) cannot be installed: tests that open reports in it are skipped"

doctor: .venv ## say what this machine can do for a run, and what to mend
	@$(BIN)/python scripts/doctor.py

demo: system ## pixels: train DeFlow on a small real dataset, evaluate, plot (5 minutes on 2 cores)
	$(LAUNCH) scripts/train.py --task visual-cube-double-play --preset demo

demo-state: $(DATA)/cube-single-play-v0.zarr ## state: collect, train and watch a policy that learns (15 minutes on 2 cores with bfloat16)
	$(LAUNCH) scripts/train.py --task cube-single-play --preset demo-state

$(DATA)/cube-single-play-v0.zarr: | .venv system
	$(BIN)/python scripts/data.py collect cube-single-play --episodes 200

test: system browser ## run the test suite, in a process a core, up to eight
	$(BIN)/pytest --numprocesses $(CORES) --maxprocesses 8 --dist worksteal

soak: system ## damage files by the thousand and kill work by the dozen (docs/reliability.md)
	$(BIN)/python -m tests.faults

lint: .venv ## ruff, its formatter, and mypy in strict mode
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv ## build the documentation site into site/; a broken link is an error
	$(BIN)/sphinx-build -W --keep-going -q -c docs -b html . site
	@echo "open $(CURDIR)/site/index.html"

bench: system ## time all that is held to a figure, in one table (PARTS="update action", TO=page, REFERENCE=checkout)
	$(BIN)/python scripts/bench.py $(if $(PARTS),--parts $(PARTS)) $(if $(TO),--to $(TO)) \
	  $(if $(REFERENCE),--reference $(REFERENCE)) $(if $(REFERENCE_PYTHON),--reference-python $(REFERENCE_PYTHON))

clean: ## remove .venv and every cache; data/ and runs/ stay
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
