# One command for everything: `make compare`. `make help` lists the targets.
PYTHON ?= python3
PRESET ?= laptop
FIG ?= fig1
SCALE ?= laptop
N ?=
EXEC ?=
ARGS ?=
BIN := .venv/bin
RUN := $(BIN)/deep-bootstrap
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup generate compare reproduce plot report doctor test test-long check bench bench-pair bench-choices bench-generate bench-solvers bench-scale bench-replicas bench-import clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: PRESET=$(PRESET) (laptop, quick, smoke, reference)  N=<stream images>"
	@echo "             FIG=$(FIG) SCALE=$(SCALE) (smoke, laptop, paper; reproduce)"
	@echo "             EXEC='--precision fp32 --compile off' (both steps)  ARGS='--seeds 0-2 ...' (compare)"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(READY)  ## make .venv and install into it

generate: $(READY)  ## make the preset's data set, or extend it with N=...
	$(RUN) generate --preset $(PRESET) $(if $(N),--n $(N)) $(EXEC) $(ARGS)

compare: $(READY)  ## data if missing, both worlds, figure
	$(RUN) generate --preset $(PRESET) $(if $(N),--n $(N)) $(EXEC)
	$(RUN) compare --preset $(PRESET) $(EXEC) $(ARGS)

reproduce: $(READY)  ## a figure of the paper: FIG=fig2a SCALE=smoke, laptop or paper
	$(RUN) reproduce $(FIG) --scale $(SCALE) $(EXEC) $(ARGS)

plot: $(READY)  ## draw the figures of saved runs again
	$(RUN) plot results

report: $(READY)  ## all saved runs on one page, results/report.html
	$(RUN) report results

doctor: $(READY)  ## what this machine has and what auto will choose
	$(RUN) doctor

test: $(READY)  ## quick tests, minutes
	$(BIN)/python -m pytest -n auto -m "not long and not cuda" $(ARGS)

test-long: $(READY)  ## kills, compilation, real sizes
	$(BIN)/python -m pytest -n auto -m "long" $(ARGS)

check: $(READY)  ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## measure training, evaluation and sampling speed here
	$(BIN)/python -m tests.bench.speed $(ARGS)

bench-pair: $(READY)  ## measure a whole run against a plain PyTorch loop
	$(BIN)/python -m tests.bench.pair $(ARGS)

bench-choices: $(READY)  ## what a step costs with each design choice: operations counted, and wall time
	$(BIN)/python -m tests.bench.choices $(ARGS)

bench-generate: $(READY)  ## measure drawing images against diffusers' pipelines
	$(BIN)/python -m tests.bench.generate $(ARGS)

bench-solvers: $(READY)  ## which solver with how many evaluations (ARGS="--weights W --real DATA")
	$(BIN)/python -m tests.bench.solvers $(ARGS)

bench-scale: $(READY)  ## measure writing and reading a large data set, ARGS='--n 1000000'
	$(BIN)/python -m tests.bench.scale $(ARGS)

bench-replicas: $(READY)  ## measure from which size on stacking seeds does not pay
	$(BIN)/python -m tests.bench.replicas $(ARGS)

bench-import: $(READY)  ## import a CIFAR-5m part of full length: time, memory, every row (10 GB of disk)
	$(BIN)/python -m tests.bench.importing $(ARGS)

clean:  ## remove the environment and caches; data and results stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis *.egg-info
