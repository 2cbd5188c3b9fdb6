# Two commands on a fresh machine: `make demo` and `make test`. Each makes what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-oldest test-clients lint typecheck check docs clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Running and compressing needs no torch, so that the demo installs in seconds.
$(VENV)/.runtime: setup.cfg constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu]'
	touch $@

$(VENV)/.development: setup.cfg constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu,torch,images,dev]'
	touch $@ $(VENV)/.runtime

$(VENV)/.docs: setup.cfg constraints.txt | $(BIN)/python
	$(PIP) --editable '.[docs]'
	touch $@

demo: $(VENV)/.runtime
	mkdir -p $(DEMO)
	$(BIN)/onnx-igpc compress sample_models/digits_net.onnx -o $(DEMO)/digits_small.onnx \
		--ch 32 --calibration sample_models/digits_calibration.npz \
		--report $(DEMO)/digits_small.json
	$(BIN)/onnx-igpc verify sample_models/digits_net.onnx $(DEMO)/digits_small.onnx \
		--data sample_models/digits_test.npz
	$(BIN)/onnx-igpc report $(DEMO)/digits_small.onnx

test: $(VENV)/.development
	$(BIN)/python -m pytest --numprocesses auto $(PYTEST_ARGS)

# The oldest versions that setup.cfg allows, but for torch: the builds of old versions that pip installs
# bring gigabytes of CUDA. `make test-oldest OLDEST_TORCH=2.6.0` takes them all the same. Pages, benchmarks, memory and
# network use are the same whatever the versions: `make test` alone runs those.
OLDEST_TORCH ?= $(patsubst torch==%,%,$(filter torch==%,$(file < constraints.txt)))
test-oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	sed 's/^torch==.*/torch==$(OLDEST_TORCH)/' constraints-oldest.txt > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VENV)-oldest/constraints.txt --editable '.[cpu,torch,images,dev]'
	$(VENV)-oldest/bin/python -m pytest --numprocesses auto --ignore tests/benchmarks --ignore tests/test_docs.py \
		--ignore tests/test_scale.py --ignore tests/test_supply_chain.py $(PYTEST_ARGS)

# Compressed models in OpenVINO, OpenCV, onnxslim and others, in an environment that has them.
test-clients:
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet --disable-pip-version-check \
		--editable '.[cpu,clients,browser]' pytest hypothesis
	$(VENV)-clients/bin/python -m pytest tests/test_clients.py tests/benchmarks/test_channel_pruning.py

lint: $(VENV)/.development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# Type checkers do not see that passes/ is installed as onnx_igpc.passes: check the built package.
typecheck: $(VENV)/.development
	rm -rf build/typecheck
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/typecheck/wheel .
	$(BIN)/python -m zipfile -e build/typecheck/wheel/*.whl build/typecheck/package
	cd build/typecheck/package && MYPYPATH=. $(abspath $(BIN))/mypy \
		--config-file $(abspath pyproject.toml) -p onnx_igpc

check: lint typecheck test

# A site in build/site that loads nothing from elsewhere. Warnings are errors.
docs: $(VENV)/.docs
	$(BIN)/python docs/drawings/draw.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "docs: build/site/index.html"

clean:
	rm -rf build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache
