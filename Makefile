# Two commands do everything on a fresh machine: `make imagenet64` runs the main job, `make test` runs the tests.
# Settings go into ARGS:  make imagenet64 ARGS='run.seed=1 sweep.noise_magnitudes=[1,50]'

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: imagenet64 test test-fast lint bench bench-data bench-sweep faults chaos clean

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; name another one: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[test]'
	@touch $@

imagenet64: $(READY)
	$(BIN)/python pipelines/imagenet64.py $(ARGS)

# Two files of tests at a time, in the order that they are listed in: the long ones come first.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

test: $(READY)
	$(PYTEST) $(ARGS)

test-fast: $(READY)
	$(PYTEST) -m "not slow" $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)
	$(BIN)/python tests/benchmarks/loss_cost.py
	$(BIN)/python tests/benchmarks/ten_step_2d.py
	$(BIN)/python tests/benchmarks/one_step_2d.py

bench-data: $(READY)
	$(BIN)/python tests/benchmarks/data_loading.py $(ARGS)
	$(BIN)/python tests/benchmarks/resume.py

faults: $(READY)
	$(BIN)/python tests/faults/run.py $(ARGS)

chaos: $(READY)
	$(BIN)/python tests/faults/chaos.py $(ARGS)

bench-sweep: $(READY)
	$(BIN)/python tests/benchmarks/packed_trials.py $(ARGS)
	$(BIN)/python tests/benchmarks/long_sweep.py

clean:
	rm -rf $(VENV) build *.egg-info
