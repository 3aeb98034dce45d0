# Two commands on a machine with Python 3.11 and make: `make demo` and `make test`. Each sets up what is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRA ?= cpu
# Tests run side by side; a file's tests share what is slow to start.
WORKERS ?= 2
STAMP := $(VENV)/.set-up-$(EXTRA)

# torch's CPU build comes from the wheel folder that PIP_FIND_LINKS names, else from PyTorch's own index.
ifeq ($(EXTRA),cpu)
PINS := --constraint constraints.txt --overrides overrides.txt
ifdef PIP_FIND_LINKS
TORCH := --find-links $(PIP_FIND_LINKS)
else
TORCH := --torch-backend cpu
endif
endif

.PHONY: demo test fast lint setup clean wheel

demo: setup
	$(BIN)/counterfoil run quickstart

test: setup lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

fast: setup lint
	$(BIN)/python -m pytest -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt overrides.txt
	@$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed, this is ' + sys.version) if sys.version_info < (3, 11) else 0"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --compile-bytecode $(TORCH) $(PINS) --editable '.[$(EXTRA),dev]'
	touch $(STAMP)

wheel: setup
	$(BIN)/uv build --wheel --out-dir dist

clean:
	rm -rf $(VENV) dist
