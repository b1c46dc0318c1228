# make demo | demo-ipc10 | test | lint | bench      in a virtual environment of their own, .venv
# make gpu PYTHON=python3              on a CUDA machine, with the packages that are there
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
RESULTS := runs/bench

.PHONY: demo demo-ipc10 test lint bench gpu clean

# The stamp holds the seconds that installing took. torch comes first and alone: asked for by
# another package, pip would take the newest build with gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml setup.py $(wildcard csrc/*)
	start=$$(date +%s) \
	&& $(PYTHON) -m venv $(VENV) \
	&& $(PIP) "$(TORCH)" "setuptools>=77" wheel ninja \
	&& $(PIP) --no-build-isolation --editable ".[distill]" \
	&& echo $$(($$(date +%s) - start)) > $@

$(VENV)/.tested: $(VENV)/.installed tests/peers.txt
	$(PIP) --no-build-isolation --editable ".[test,lint]"
	$(PIP) --no-deps --requirement tests/peers.txt && touch $@

demo: $(VENV)/.installed
	$(BIN)/mim4dd compare --install-seconds $$(cat $<) --out runs/demo

# With ten images per class the student starts from later experts, and takes half of them a step.
demo-ipc10: $(VENV)/.installed
	$(BIN)/mim4dd compare --ipc 10 --train-epochs 20 --max-start-epoch 10 --batch-syn 50 \
		--lr-img 30 --lr-lr 1e-5 --iterations 100 --out runs/demo-ipc10

test: $(VENV)/.tested
	$(BIN)/python -m pytest

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.tested
	mkdir -p $(RESULTS)
	$(BIN)/python -m pytest bench --benchmark-json=$(RESULTS)/results.json
	$(BIN)/python bench/report.py $(RESULTS)/results.json --plot $(RESULTS)/times.png \
		| tee $(RESULTS)/results.md

gpu:
	$(PYTHON) bench/gpu.py

clean:
	rm -rf $(VENV) build *.egg-info mim4dd/*.so
