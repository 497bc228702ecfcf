# `make` alone lists what there is to make. Everything runs in .venv, which the first target that
# needs it creates from requirements.lock, and refreshes when that file or pyproject.toml changes.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help .venv system demo demo-state test lint bench clean

PYTHON ?= python3
BIN := .venv/bin
DATA := $(or $(DEFLOW_DATA),data)
TRAIN := $(BIN)/accelerate launch --config_file configs/accelerate/cpu.yaml scripts/train.py

# What draws the environments without a screen or a GPU, as Debian and Ubuntu name it.
GL_PACKAGES := libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libosmesa6
GL_WORKS := $(BIN)/python -m deflow_vision.envs.rendering

help: ## list the targets
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.venv: .venv/installed ## make or refresh the virtual environment (PYTHON=python3.12 picks another Python)

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing the packages of requirements.lock into .venv: about 6 GB on disk, once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

system: .venv ## bring the GL libraries that MuJoCo draws with, where they are missing
	@if $(GL_WORKS) >/dev/null 2>&1; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "MuJoCo cannot draw here: installing $(GL_PACKAGES)"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends $(GL_PACKAGES) >/dev/null && $(GL_WORKS); \
	else \
	  echo "MuJoCo cannot draw here. Install its GL libraries, then run make again:"; \
	  echo "  sudo apt-get install $(GL_PACKAGES)"; \
	  exit 1; \
	fi

demo: system ## pixels: train DeFlow on a small real dataset, evaluate, plot (5 minutes on 2 cores)
	$(TRAIN) --task visual-cube-double-play --preset demo

demo-state: $(DATA)/cube-single-play-v0.zarr ## state: collect, train and watch a policy that learns (15 minutes on 2 cores)
	$(TRAIN) --task cube-single-play --preset demo-state

$(DATA)/cube-single-play-v0.zarr: | .venv system
	$(BIN)/python scripts/data.py collect cube-single-play --episodes 200

test: system ## run the test suite
	$(BIN)/pytest

lint: .venv ## ruff, its formatter, and mypy in strict mode
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv ## time an update and the sampler on this machine
	$(BIN)/python scripts/benchmark.py

clean: ## remove .venv and every cache; data/ and runs/ stay
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
