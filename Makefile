# Every target sets up .venv first, which takes minutes once and 0.1 s afterwards (install/venv.py).
# Another Python than python3: make PYTHON=python3.12 ...
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo check test test-fast lock clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo       ask four tiny models about drawn faces, and score them'
	@echo 'make test       everything that CI runs: check, then all tests'
	@echo 'make test-fast  check, then the tests that take no vLLM engine and no cluster'
	@echo 'make check      format, lint, types, import layers'
	@echo 'make bench-NAME a longer measurement: python -m bench.NAME'
	@echo 'make install    only set up .venv'
	@echo 'make lock       resolve install/lock-*.txt again (UPGRADE=--upgrade for newer versions)'
	@echo 'make clean      remove .venv and everything else that can be made again'

install:
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit( \
	    "facescan needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d.\n" \
	    "Name another: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	@$(PYTHON) install/venv.py

demo: install
	$(BIN)/facescan doctor
	$(BIN)/facescan run --dataset sample --limit 1000 --model tiny-paligemma,tiny-llava,tiny-florence,tiny-resnet \
	    --attributes race,gender,age,emotion --output-dir runs/demo

check: install
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two files at a time: with three, on two cores, Rays do not start within the 30 s that Ray waits.
# Threads of torch that wait for each other would spin, and take the cores from the other file: the
# tests of the engines alone took 419 s that way, and take 151 s.
test: check
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: check
	$(BIN)/pytest -m 'not slow and not gpu'

bench-%: install
	$(BIN)/python -m bench.$(subst -,_,$*)

lock:
	PYTHON=$(PYTHON) UPGRADE=$(UPGRADE) install/lock.sh

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
