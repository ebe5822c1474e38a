# make demo   train, evaluate and talk to a small agent; offline once everything is installed
# make test   run the whole test suite
# make lint   check style, types and the import rule
# make bench  measure training speed and memory beside a naive loop and PEFT: a quarter of an hour
#             (make bench BENCH=--quick: seconds)
# The first of them installs everything into .venv. To choose the interpreter: make test PYTHON=python3.12

PYTHONS := 3.11 3.12
VENV    ?= .venv
TORCH   ?= torch==2.13.0
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed

IS_SUPPORTED := import sys; sys.exit("%d.%d" % sys.version_info[:2] not in "$(PYTHONS)".split())
PYTHON ?= $(shell for p in python3 $(PYTHONS:%=python%); do $$p -c '$(IS_SUPPORTED)' 2>/dev/null && echo $$p && break; done)

.PHONY: install demo test lint bench clean

install: $(STAMP)

$(STAMP): requirements.lock setup.py
	@$(or $(PYTHON),false) -c '$(IS_SUPPORTED)' || { echo 'Supported Pythons: $(PYTHONS). Name one of them: make … PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --no-deps -r requirements.lock
	$(BIN)/pip install '$(TORCH)'   # already installed; this adds what its build for this platform needs (CUDA libraries)
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/spt demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python projects/benchmark/bench.py $(BENCH)

clean:
	rm -rf $(VENV) build dist *.egg-info
