# make demo | make test | make bench | make lint: each sets up what it needs in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h') setup.py pyproject.toml
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: demo test bench lint format clean

demo: $(VENV)/.built
	$(BIN)/python examples/lab.py --loss both
	$(BIN)/python examples/zoo.py --loss both

test: $(VENV)/.built
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.built $(VENV)/.peers
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist *.egg-info softkern/_C.*.so $(VENV)

# The interpreter's own torch serves if it has one that a virtual environment can see; a second copy would be
# several hundred megabytes.
$(VENV)/.torch:
	$(PYTHON) -m venv $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install 'torch==2.13.0'
	$(BIN)/python -m pip install 'setuptools>=64,<82' wheel ninja
	touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --no-build-isolation -e '.[test]'
	touch $@

# One that can't be had is a line in the benchmark's output, not an end to it.
$(VENV)/.peers: $(VENV)/.built
	for peer in $$(sed -n 's/^peers = \[\(.*\)\].*/\1/p' pyproject.toml | tr -d '",'); do \
		$(BIN)/python -m pip install $$peer || echo "$$peer: not to be had"; done
	touch $@

# Read from pyproject.toml, the only place that pins them.
$(VENV)/.lint: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $$(sed -n 's/^lint = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	touch $@
