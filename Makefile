# `make demo` and `make test` work on a fresh checkout: each makes its own virtual environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
NPM    := npm install --silent --no-audit --no-fund --fetch-retries 1 --fetch-timeout 30000
export OMP_NUM_THREADS ?= 2
# Threads that spin while they wait starve the other worker processes of a test.
export OMP_WAIT_POLICY ?= PASSIVE

TEST_PROCESSES ?= 2

# Of the experiments: all of METHODS are learned with SEEDS seeds each; an experiment takes from half an hour to hours.
METHODS ?= scalebio,doge,doremi,rho,dsir
SEEDS ?= 3
STUDY ?= blocks
EXPERIMENT = $(BIN)/python tests/bench/experiments/run.py --methods $(METHODS) --seeds $(SEEDS)

.PHONY: help demo test test-slow chromium bench bench-denoise bench-multilingual bench-domains bench-instruct bench-untuned bench-ablations bench-transfer bench-rows lint types contracts format clean
help:
	@echo "make demo        install, then learn and publish domain weights on a small lake of real text"
	@echo "make test        install, lint, types, contracts and the whole unmarked test suite"
	@echo "make test-slow   the tests marked slow, and those of the report in a Chromium, which it fetches where apt can"
	@echo "make chromium    Debian's Chromium into the virtual environment, without root, unless there is one"
	@echo "make bench       the benchmarks, each against a named peer or limit"
	@echo "make bench-multilingual, -domains, -denoise, -instruct, -untuned"
	@echo "                 experiments: do the learned weights beat uniform and the baselines? (needs the data folder)"
	@echo "make bench-ablations STUDY=blocks"
	@echo "                 what each setting changes: blocks, aux, penalty, penalty-instructions,"
	@echo "                 optimizer, restarts, noise, domains"
	@echo "make bench-transfer"
	@echo "                 do weights learned with one model serve another?"
	@echo "make bench-rows  are row weights right, and is a model better for them?"
	@echo "make format      rewrite the code in the project's format"

$(VENV)/.train: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[train]'
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --upgrade 'pip>=25.1'
	$(PIP) --group dev
	$(NPM) --prefix $(VENV)/azurite azurite@3.35.0 || echo "no Azurite: the tests on Azure storage will be skipped"
	@touch $@

demo: $(VENV)/.train
	$(BIN)/curator demo

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

# A file's tests stay together: they share lakes and runs that took long to make. Files come in their order: in that of
# xdist, most tests first, files of few long tests are left to one process at the end.
test: lint types contracts
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

chromium: $(VENV)/.dev
	$(BIN)/python tests/chromium.py || echo "no Chromium: the tests of the report in a browser will be skipped"

test-slow: chromium
	$(BIN)/pytest tests/curator/test_report_in_browser.py
	$(BIN)/pytest -m slow

bench: $(VENV)/.dev
	@for file in tests/bench/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

bench-denoise: $(VENV)/.dev
	$(EXPERIMENT) denoise
	$(EXPERIMENT) partitions

bench-multilingual: $(VENV)/.dev
	$(EXPERIMENT) multilingual-easy
	$(EXPERIMENT) multilingual-hard

bench-domains: $(VENV)/.dev
	$(EXPERIMENT) domains

bench-instruct: $(VENV)/.dev
	$(EXPERIMENT) instruct

bench-untuned: $(VENV)/.dev
	$(EXPERIMENT) dutch
	$(EXPERIMENT) reviews
	$(EXPERIMENT) code

bench-ablations: $(VENV)/.dev
	$(BIN)/python tests/bench/experiments/ablations.py $(STUDY) --seeds $(SEEDS)

bench-transfer: $(VENV)/.dev
	$(BIN)/python tests/bench/experiments/transfer.py --seeds $(SEEDS)

bench-rows: $(VENV)/.dev
	$(BIN)/python tests/bench/experiments/rows.py --seeds $(SEEDS)
	$(BIN)/python tests/bench/experiments/gain.py --seeds $(SEEDS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) curator-demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
