# make demo   train, evaluate and talk to an agent; offline once everything is installed (make demo LLM=demo: in a minute)
# make test   run the whole test suite
# make lint   check style, types and the import rule
# make bench  measure training speed and memory beside a naive loop and PEFT: a quarter of an hour
#             (make bench BENCH=--quick: seconds)
# The first of them installs everything into .venv. To choose the interpreter: make test PYTHON=python3.12
# To choose the build of torch: make install TORCH=torch==2.12.0 TORCH_INDEX=https://download.pytorch.org/whl/cu128
# Where there is no NVIDIA GPU, the index is that of the small builds for CPUs, if it can be reached; TORCH_INDEX= is PyPI.

PYTHONS := 3.11 3.12
VENV    ?= .venv
TORCH   ?= torch==2.13.0
FOR_CPU := https://download.pytorch.org/whl/cpu
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed

IS_SUPPORTED := import sys; sys.exit("%d.%d" % sys.version_info[:2] not in "$(PYTHONS)".split())
PYTHON ?= $(shell for p in python3 $(PYTHONS:%=python%); do $$p -c '$(IS_SUPPORTED)' 2>/dev/null && echo $$p && break; done)

ANSWERS = $(PYTHON) -c 'from urllib.request import urlopen; urlopen("$(FOR_CPU)/torch/", timeout=5)' 2>/dev/null
TORCH_INDEX ?= $(shell [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && $(ANSWERS) && echo $(FOR_CPU))
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-warn-conflicts

.PHONY: install demo test lint bench clean

install: $(STAMP)

$(STAMP): requirements.lock setup.py
	@$(or $(PYTHON),false) -c '$(IS_SUPPORTED)' || { echo 'Supported Pythons: $(PYTHONS). Name one of them: make … PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@index='$(TORCH_INDEX)'; echo "1/3 $(TORCH) from $${index:-PyPI} ..."; $(PIP) --no-deps $${index:+--index-url $$index} '$(TORCH)'
	@echo '2/3 the other libraries and SmolLM2 ...'; grep -v '^torch==' requirements.lock | $(PIP) --no-deps -r /dev/stdin
	@echo '3/3 spt_parlai, and what this build of torch needs ...'; $(PIP) '$(TORCH)'
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/spt demo $(if $(LLM),--llm $(LLM))

test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python projects/benchmark/bench.py $(BENCH)

clean:
	rm -rf $(VENV) build dist *.egg-info
