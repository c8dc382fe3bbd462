# One virtual environment, .venv, from the pinned lock; every target makes what it needs.
# torch in the lock: where the package index serves CUDA builds for this version and you want the CPU one,
# set PIP_EXTRA_INDEX_URL to PyTorch's CPU index first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find plugins -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh' -o -name 'CMakeLists.txt' -o -name '*.cmake')
DEMO := build/demo
OFFLINE := HF_HUB_OFFLINE=1
# Kernels of this editable install: for the GPU at hand, else for 9.0 alone, which takes a sixth of the time that a wheel
# for all architectures (`pip wheel .`) does. The PTX beside them serves later GPUs either way.
GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -un | paste -sd ';')
ARCHITECTURES ?= $(if $(GPUS),$(GPUS),90)

.PHONY: demo test lint bench clean

$(VENV)/locked: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	touch $@

# The lock holds the build requirements too, so no isolated environment is fetched. An editable install lists
# the modules it finds: adding one means installing again, which the second dependency line sees to.
$(VENV)/built: $(VENV)/locked pyproject.toml $(NATIVE) $(shell find converter runtime -name '*.py')
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
		--config-settings=cmake.define.SPECTRAL_CUDA_ARCHITECTURES="$(ARCHITECTURES)" --editable .
	touch $@

demo: $(VENV)/built
	$(OFFLINE) $(BIN)/spectral-convert --recipe recipes/demo/demo.yaml --out $(DEMO) --overwrite
	$(OFFLINE) $(BIN)/spectral generate $(DEMO) --prompt "The old house stood at the edge of" --max-new-tokens 48
	$(OFFLINE) $(BIN)/spectral generate $(DEMO) --prompt "She opened the letter and" --max-new-tokens 48
	$(OFFLINE) $(BIN)/spectral evaluate $(DEMO) --text recipes/demo/books.txt --max-tokens 40000 --sequence-length 512 \
		--evidence $(DEMO).json
	$(OFFLINE) $(BIN)/spectral report $(DEMO) --text recipes/demo/books.txt --evidence $(DEMO).json --out $(DEMO).html

test: $(VENV)/built
	$(OFFLINE) $(BIN)/python -m pytest

lint: $(VENV)/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find plugins -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

bench: $(VENV)/built
	$(BIN)/python tests/benchmarks/bench_route_cpu.py
	$(BIN)/python tests/benchmarks/bench_build.py

clean:
	rm -rf build $(VENV)
