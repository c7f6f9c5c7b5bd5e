# Normalization, Derived. `make help` lists what can be asked for.
# Needs git, make and Python 3.11 or newer; everything else is installed into .venv.
# Another Python: make book PYTHON=python3.12

PYTHON ?= python3
PORT ?= 8000
NOTEBOOKS ?= $(sort $(wildcard notebooks/*.ipynb))

BIN := .venv/bin
BOOK := _build/html/index.html
LOG := .venv/setup.log

# One thread: the stored outputs are those of one thread, and so are the timings.
export OMP_NUM_THREADS := 1

.PHONY: help book serve test quick run lab check gpu portable lowest lighthouse clean \
    some-notebooks
.DEFAULT_GOAL := help

help:  ## This list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## */  make \1\t/' \
	    | expand -t 20

# ---------------------------------------------------------------- set-up

# pip would compile every file of every package, of which most are never imported; each
# is compiled and kept when it first is, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE
.venv/ready: requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo \
	    "$(PYTHON) is missing: install Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	    "$$($(PYTHON) --version 2>&1) is too old: the book needs 3.11 or newer" \
	    "(another one: make PYTHON=python3.12)." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo \
	    "Python's venv module is missing" \
	    "(on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@start=$$(date +%s); \
	step() { echo "set-up  $$(( $$(date +%s) - start )) s  $$1"; }; \
	pip() { $(BIN)/python -m pip --disable-pip-version-check "$$@"; }; \
	all=$$(grep -c == requirements.txt); found=0; \
	step "new environment in .venv"; \
	rm -rf .venv && $(PYTHON) -m venv .venv && touch $(LOG) \
	    || { echo "set-up failed: .venv could not be made." >&2; exit 1; }; \
	{ pip install --no-compile --progress-bar off -r requirements.txt \
	    && pip install --no-build-isolation --no-deps --editable . \
	    && touch .venv/installed; } 2>&1 | tee $(LOG) | while read -r word rest; do \
	    case $$word in \
	    Collecting|Processing) found=$$((found + 1)); \
	        case $$found in *[05]0) step "$$found of $$all packages found";; esac;; \
	    Installing) case $$rest in collected*numpy*) \
	        step "$$found of $$all packages found, installing them";; esac;; \
	    esac; done; \
	test -f .venv/installed || { tail -n 20 $(LOG) >&2; \
	    echo "set-up failed: the lines above are the end of $(LOG)." >&2; exit 1; }; \
	mv .venv/installed $@; step "ready"

# Python for the pages. Where no place has it the folder is not made, and asked for again.
_build/pyodide: book/package-lock.json book/_ext/pyodide_files.py | .venv/ready
	@echo "set-up  Python for the pages"; $(BIN)/python book/_ext/pyodide_files.py

# ---------------------------------------------------------------- the book

# From nothing each time: a page that is gone must not stay, and Sphinx repeats the
# warnings of a page only when it reads that page again.
book: .venv/ready _build/pyodide  ## Set up and build the book
	@rm -rf _build/html
	@$(BIN)/jupyter-book build . --all -W -n --keep-going -q
	@echo "The book is built. Open $(BOOK), or: make serve"

serve: book  ## Build the book and serve it on this machine
	@echo "http://localhost:$(PORT) (Ctrl-C stops it)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

lighthouse:  ## What Lighthouse thinks of the built book on a phone, where npm is at hand
	@$(PYTHON) tests/lighthouse.py

# ---------------------------------------------------------------- tests

# A file stays on one core: a notebook has one kernel, a fixture of a file is made once.
# Files come in the order of tests/conftest.py and of pyproject.toml's testpaths.
PARALLEL := -n logical --maxprocesses=4 --dist loadfile --no-loadscope-reorder
# They time layers on one thread, so they run when nothing else does, on a core each.
TIMED := notebooks/07_fast.ipynb notebooks/07_fast_lab.ipynb

test: book  ## Set up and test everything: code, every stored output, the pages
	@$(BIN)/python -m pytest $(PARALLEL) $(addprefix --ignore=,$(TIMED)) --durations=5
	@$(BIN)/python -m pytest $(PARALLEL) $(TIMED)

# Without nbval, which takes seconds to import in each of three processes.
quick: check  ## Lint and unit tests: no book, no notebook, no other process
	@$(BIN)/python -m pytest -q $(PARALLEL) -o addopts=--strict-markers -p no:nbval \
	    -m "not processes and not browser and not slow and not gpu" tests

# AVX2 or less, library by library: torch, oneDNN, MKL, OpenBLAS, NumPy's own loops,
# numba. torch.compile's cache on disk is left alone, because it does not ask for which
# instructions a graph was compiled: from it, an AVX2 run would get loops of 16 lanes.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE \
    OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES=X86_V4,AVX512_ICL,AVX512_SPR \
    NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma,+f16c \
    TORCHINDUCTOR_FX_GRAPH_CACHE=0 TORCHINDUCTOR_AUTOGRAD_CACHE=0

portable: .venv/ready some-notebooks  ## Compare the stored outputs with 1 and 2 threads and AVX2
	@for set in OMP_NUM_THREADS=1 OMP_NUM_THREADS=2 "$(AVX2)"; do \
	    echo "$$set"; env $$set $(BIN)/python -m pytest -q $(NOTEBOOKS) || exit 1; done

# What needs no notebook, browser, book or record.
UNIT_TESTS := $(addprefix tests/test_, core.py moments.py functional.py properties.py \
    errors.py nn.py data.py exercises.py fast.py fast_cpu.py internals.py lowest.py)

.venv-lowest/ready: requirements-lowest.txt
	@rm -rf .venv-lowest && $(PYTHON) -m venv .venv-lowest
	@.venv-lowest/bin/python -m pip install -q -r requirements-lowest.txt && touch $@

lowest: .venv-lowest/ready  ## Unit tests with the lowest versions of pyproject.toml
	@PYTHONPATH=src .venv-lowest/bin/python -m pytest -o addopts= -q $(UNIT_TESTS)

check: .venv/ready  ## Lint, format, types, the layers of the house, the workflows
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@if command -v actionlint >/dev/null; then actionlint; \
	    else echo "actionlint is not installed: the workflows were not checked"; fi

# ---------------------------------------------------------------- notebooks

# With no notebook at hand pytest would run everything and nbconvert would fail oddly.
some-notebooks:
	@test -n "$(NOTEBOOKS)" || { echo "notebooks/ holds no notebook." >&2; exit 1; }

run: .venv/ready some-notebooks  ## Run every notebook and store what it prints (or NOTEBOOKS=...)
	@for notebook in $(NOTEBOOKS); do start=$$(date +%s); \
	    $(BIN)/jupyter-nbconvert --execute --inplace --log-level=ERROR \
	        --ExecutePreprocessor.record_timing=False \
	        --ExecutePreprocessor.timeout=300 \
	        --ExecutePreprocessor.extra_arguments=--IPKernelApp.log_level=40 \
	        $$notebook || exit 1; \
	    : one stream of text a cell, however the kernel happened to flush it; \
	    $(BIN)/jupyter-nbconvert --to notebook --inplace --coalesce-streams \
	        --log-level=ERROR $$notebook || exit 1; \
	    echo "$$notebook  $$(( $$(date +%s) - start )) s"; done

# JupyterLab shows no stored figure of a notebook that it does not trust.
lab: .venv/ready some-notebooks  ## Open the notebooks in JupyterLab
	@$(BIN)/jupyter-trust $(NOTEBOOKS) >/dev/null
	@$(BIN)/jupyter-lab notebooks

# ---------------------------------------------------------------- GPU

# Those that run on a GPU, which need pytest, NumPy and torch alone.
GPU_TESTS := $(addprefix tests/test_, core.py moments.py functional.py gpu.py bench.py)

gpu:  ## All that needs a GPU, with the Python at hand and nothing installed
	@export PYTHONPATH="src:$$PYTHONPATH"; \
	skip() { echo "skipped: $$1"; }; \
	sees="import torch; print(torch.cuda.is_available())"; \
	case $$($(PYTHON) -c "$$sees" 2>/dev/null) in \
	True) ;; \
	False) skip "the tests marked gpu, because PyTorch sees no GPU"; \
	    skip "the records of agreement and speed, because PyTorch sees no GPU"; \
	    exit 0;; \
	*) skip "everything, because $(PYTHON) has no PyTorch"; exit 0;; esac; \
	status=0; \
	if $(PYTHON) -c 'import pytest' 2>/dev/null; then \
	    $(PYTHON) -m pytest -o addopts= -o filterwarnings= -m gpu $(GPU_TESTS) \
	        || status=1; \
	else skip "the tests marked gpu, because pytest is missing"; fi; \
	$(PYTHON) -m normbook.measure.agreement --record || status=1; \
	$(PYTHON) -m normbook.bench --device cuda --record || status=1; exit $$status

clean:  ## Remove what make made
	rm -rf .venv .venv-lowest _build .mypy_cache .ruff_cache .import_linter_cache \
	    .hypothesis .coverage .jupyter_cache build *.egg-info src/*.egg-info
