# Two commands on a fresh machine with Python 3.10+ and git: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test peer bench kernels-report lint clean help

help:
	@echo "make demo   set everything up and run the main job: fastvim ablate pooling-alternation"
	@echo "make test   set everything up and run the tests"
	@echo "make bench  run the benchmarks (minutes; they print ratios against a peer)"
	@echo "            JSON=folder keeps the figures; benchmarks/compare.py compares two folders"
	@echo "make kernels-report   compile the GPU kernels without a GPU; registers, spills, bytes"
	@echo "make lint   check format, style and types"

demo: $(VENV)/installed
	$(BIN)/fastvim ablate pooling-alternation

# Files in the order that tests/conftest.py gives them, the longest first; xdist has its own.
test: $(VENV)/installed peer
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# mamba-ssm's slow definition is a peer of the tests. Its Python alone: no CUDA build, no other torch.
# Without a network the tests that need it skip, and everything else runs.
peer: $(VENV)/installed
	@test -e $(VENV)/peer || { \
	  pip="$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 20"; \
	  $$pip "setuptools>=77" wheel packaging einops transformers && \
	  MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE \
	  $$pip --no-build-isolation --no-deps "mamba-ssm>=2.2" && touch $(VENV)/peer; } || \
	  echo "mamba-ssm cannot be installed: the tests against its selective_scan_ref will skip"

# What measures; the others are parts of these, or run by themselves (simulations take half an hour).
NOT_TIMED := timing compare kernel_costs kernels_report interval_coverage
bench: $(VENV)/installed
	@for name in $(filter-out $(NOT_TIMED),$(basename $(notdir $(wildcard benchmarks/*.py)))); do \
	  echo "== $$name"; \
	  $(BIN)/python benchmarks/$$name.py $(if $(JSON),--json $(JSON)/$$name.json) || exit 1; \
	done

kernels-report: $(VENV)/installed
	$(BIN)/python benchmarks/kernels_report.py

lint: $(VENV)/installed
	$(BIN)/python -m pip install --quiet "ruff>=0.6" "mypy>=1.10"
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy fastvim fastvim_cli kernels

# The compiled kernels are built here too; without a compiler the install succeeds without them.
$(VENV)/installed: pyproject.toml $(wildcard kernels/csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastvim needs Python 3.10 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	$(BIN)/fastvim doctor
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info kernels/*.so results
