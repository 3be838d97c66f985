# make demo   MovieLens-100K from download to report, on a CPU, in a few minutes
# make test   the test suite with coverage          make lint   ruff and mypy
# make test-slow  the tests of minutes, on real data where it is there
# make format rewrites the sources the way `make lint` wants them
#
# Each makes .venv on first use, and again only after pyproject.toml or constraints.txt changed.
#   make demo PYTHON=python3.13
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu   the small CPU build of torch, where
#                                                                your default index holds a CUDA build
#   make demo PIP_ARGS="--index-url https://mirror.example/simple"

PYTHON ?= python3
PIP_ARGS ?=
TORCH_INDEX ?=
JOBS ?= auto

BIN := .venv/bin
INSTALLED := .venv/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format rechub deepspeed clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: $(INSTALLED)
	$(BIN)/hllm demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow" --cov --cov-report=term

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch-rechub beside hllm, without its dependencies' pins: the tests that compare with it then run.
rechub: $(INSTALLED)
	$(PIP_INSTALL) --no-deps torch-rechub==0.9.0
	$(PIP_INSTALL) scikit-learn tqdm

# DeepSpeed, without its compiled operations: the slow tests of strategies zero1 to zero3 then run.
deepspeed: $(INSTALLED)
	DS_BUILD_OPS=0 $(PIP_INSTALL) --no-build-isolation deepspeed==0.19.8

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage

# torch comes first, alone, so that no other package decides which build of it is taken.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@
