# The whole interface of a checkout. `make run` and `make test` need Python >= 3.11 and git alone.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Peers of the benchmarks that want other packages than we do.
PEERS  := $(VENV)/peers

.PHONY: run setup lint type imports test cover fuzz seeds chances kills soak mutants mutants-all bench docs check clean

run: $(STAMP)            ## install, start two nodes, let them call each other, say how to go on
	$(BIN)/python -m alknet.cli.demo

setup: $(STAMP)          ## install alknet and everything its tests need into $(VENV)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

lint: $(STAMP)           ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP)           ## types
	$(BIN)/mypy

imports: $(STAMP)        ## layers
	$(BIN)/lint-imports

test: $(STAMP)           ## all tests; foreign programs are installed where apt is allowed
	PYTHON=$(BIN)/python tests/install-foreign
	$(BIN)/python -m pytest -q -n auto --dist loadfile

cover: $(STAMP)          ## tests with the coverage floor
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

fuzz: $(STAMP)           ## coverage-guided fuzzing, SECONDS per target
	$(BIN)/python -m pip install --quiet '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60)

seeds: $(STAMP)          ## 1,000 seeded runs over bad networks (SEEDS)
	ALKNET_SEEDS=$(or $(SEEDS),1000) $(BIN)/python -m pytest -q tests/scenarios/test_bad_networks.py

chances: $(STAMP)        ## the tests under a virtual clock with the luck of numbers 1 to 50 (CHANCES)
	for chance in $$(seq $(or $(CHANCES),50)); do \
	    ALKNET_CHANCE=$$chance $(BIN)/python -m pytest -q -n auto -m virtual_clock || exit 1; \
	done

kills: $(STAMP)          ## 200 rounds of 32 writers that are killed (KILLS)
	ALKNET_KILLS=$(or $(KILLS),200) $(BIN)/python -m pytest -q tests/stores/sqlite/test_killed.py

soak: $(STAMP)           ## a node under everything at once, for SECONDS (an hour)
	$(BIN)/python -m tests.soak --seconds $(or $(SECONDS),3600)

mutants: $(STAMP)        ## does a test notice a wrong line of the hot path? (SAMPLE, SEED, FILES)
	$(BIN)/python -m tests.mutants --sample $(or $(SAMPLE),60) --seed $(or $(SEED),0) $(FILES)

mutants-all: $(STAMP)    ## the same for every line: about half an hour on two cores (FILES)
	$(BIN)/python -m tests.mutants $(FILES)

bench: $(STAMP)          ## benchmarks beside other libraries; results go to benchmarks/RESULTS.md
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	PYTHON=$(BIN)/python tests/install-foreign nats-server:nats-server
	test -x $(PEERS)/libp2p/bin/python || $(PYTHON) -m venv $(PEERS)/libp2p
	$(PEERS)/libp2p/bin/python -m pip install --quiet 'libp2p>=0.8' msgspec
	test -x $(PEERS)/ray/bin/python || $(PYTHON) -m venv $(PEERS)/ray
	$(PEERS)/ray/bin/python -m pip install --quiet 'ray>=2.50' msgspec
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(STAMP)           ## regenerate the generated pages and run every code block
	$(BIN)/python -m tests.docs.generate
	$(BIN)/python -m pytest -q tests/docs

check: lint type imports test   ## what CI runs

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
