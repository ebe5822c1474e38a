# make demo   train, evaluate and talk to a small agent, offline after the installation
# make test   the whole test suite
# make bench  training speed and memory beside a naive pattern's and PEFT's, a quarter of an hour (make bench BENCH=--quick: seconds)
# All install first, into .venv, if that has not happened yet. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install demo test bench clean

install: $(STAMP)

$(STAMP): requirements.lock setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is %d.%d: make PYTHON=python3.11 …" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --no-deps -r requirements.lock
	$(BIN)/pip install '$(TORCH)'   # already there; adds what this platform's build of it needs (CUDA libraries)
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/spt demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --dist loadfile

bench: $(STAMP)
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/pip install --quiet matplotlib || true   # without it no plot
	$(BIN)/python projects/benchmark/bench.py $(BENCH)

clean:
	rm -rf $(VENV) build dist *.egg-info
