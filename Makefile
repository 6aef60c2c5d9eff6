# make quickstart   set up and train a real model on the embedded default
# make test         set up and pass the tests
# make check        lint, format, types and tests
# make faults       every fault of the table injected for real (make faults FAULT=sigterm CASE='save 2' SEED=0: one)
# make docs         the documentation as a site in site/
# make dist         wheel and sdist in dist/; make dist-check installs the wheel into a clean environment and tries it
# make bench        every benchmark beside its peers (make bench BENCH=step_grpo: one), after make bench-peers
# make bench-peers  the peers' own environments in .venv-peers/

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

BENCH ?= rollout step_grpo step_ppo update memory scaling startup scan soak quickstart agreement forecast preference_losses classifier_step gymnasium_ppo
SEED ?= 0
WORKERS ?= 2
export PEERS ?= $(CURDIR)/.venv-peers

export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test faults check lint types docs dist dist-check bench bench-peers clean

quickstart: $(VENV)/.runtime
	$(BIN)/upslope quickstart

test: $(VENV)/.dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

faults: $(VENV)/.dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m faults --seed $(SEED) \
		$(if $(FAULT),--fault $(FAULT)) $(if $(CASE),--case '$(CASE)')

check: lint types test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

dist-check: dist
	rm -rf build/clean
	$(PYTHON) -m venv build/clean
	build/clean/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	build/clean/bin/python -I tests/packaging/smoke.py src/upslope

bench: $(VENV)/.bench
	failed=0; for name in $(BENCH); do $(BIN)/python benchmarks/$$name.py || failed=1; done; exit $$failed

bench-peers: $(PEERS)/trl/.installed $(PEERS)/trl_ppo/.installed $(PEERS)/torchrl/.installed

clean:
	rm -rf $(VENV) .venv-peers site build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "upslope needs Python 3.11 or newer; run: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.runtime

$(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded,bench]'
	touch $@ $(VENV)/.runtime

$(PEERS)/%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv $(PEERS)/$*
	$(PEERS)/$*/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@
