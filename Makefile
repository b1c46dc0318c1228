# make demo | demo-ipc10 | study | test | lint | bench     in a virtual environment of their own, .venv
# make reproduce ROWS=mnist-dm-ipc1-0 DATA_PATH=data BUDGET=small      rows of published tables
# make bench-peers bench-contrastive bench-unroll   beside other libraries and the floor
# make bench-ranks                     losses over processes: time, memory, bytes
# make fuzz | soak | kills | sanitize  changed files and any inputs; many calls; commands that are
#                                      killed; the C++ half checked
# make launches                        what the tests of a GPU launch, compiled for an H200, without one
# make wheel | sdist | wheel-check | aarch64-check     what others install, in dist/, and whether they can
# make docs                            the site, in build/site; a warning is an error
# make gpu PYTHON=python3              on a CUDA machine, with the packages that are there
# make gpu-again PYTHON=python3        there after a fix; gpu-carry: what it would compile, from here
# make gpu-rehearsal                   the whole plan, without a GPU
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv

BIN := $(VENV)/bin
# Byte code is written when a module is first imported; of all modules it is most of an install. What
# images of containers often set would have every process compile torch anew, for four seconds.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
RESULTS := runs/bench
CSRC := $(shell find csrc -type f)
# torch builds one file after the other, and all of them anew, where it finds no ninja.
export PATH := $(abspath $(BIN)):$(PATH)

# A wheel to install: one in dist/ that was made from these sources, unless the environment builds
# them itself already. WHEEL= builds; WHEEL=mim4dd==0.1.0 takes it from pip's index, which is not asked
# by itself, for the name there may be anyone's.
ifeq ($(origin WHEEL),undefined)
WHEEL := $(if $(wildcard dist/*.whl),$(if $(wildcard $(VENV)/.editable),,$(shell $(PYTHON) tools/find_wheel.py)))
endif
INSTALLED := $(VENV)/$(if $(WHEEL),.wheel,.editable)

CONTRASTIVE := $(addprefix bench/bench_,info_nce.py clip_loss.py nt_xent.py sup_con.py layers.py \
	second_order.py pair_cost.py)

.PHONY: demo demo-ipc10 demo-cifar-shaped study reproduce test mutation fuzz soak kills sanitize launches \
	lint bench bench-contrastive bench-unroll bench-ranks bench-peers wheel sdist wheel-check aarch64-check \
	docs gpu gpu-again gpu-carry gpu-rehearsal clean

# The stamps hold the seconds that their steps took. torch comes first and alone: asked for by
# another package, pip would take the newest build with gigabytes of CUDA.
$(VENV)/.torch:
	start=$$(date +%s) && $(PYTHON) -m venv $(VENV) && $(PIP) "$(TORCH)" \
	&& echo $$(($$(date +%s) - start)) > $@

$(VENV)/.editable: $(VENV)/.torch pyproject.toml setup.py $(CSRC)
	@rm -f $(VENV)/.wheel
	@echo "Compiling the C++ kernels for this Python and torch, once; a wheel in dist/ would save it."
	start=$$(date +%s) \
	&& $(PIP) "setuptools>=77" wheel ninja \
	&& $(PIP) --no-build-isolation --editable ".[distill]" \
	&& echo $$(($$(date +%s) - start)) > $@

# Named alone, mim4dd is what is installed already, and pip brings what its extras need. Meanwhile the
# other core compiles torch's byte code, which the first command would wait for.
$(VENV)/.wheel: $(VENV)/.torch $(wildcard $(WHEEL))
	@rm -f $(VENV)/.editable $(VENV)/.tested
	start=$$(date +%s); $(BIN)/python -W ignore -c "import torch._dynamo" & \
	$(PIP) --no-deps --force-reinstall "$(WHEEL)" \
	&& $(PIP) "mim4dd[distill]" \
	&& wait && echo $$(($$(date +%s) - start)) > $@

$(VENV)/.tested: $(VENV)/.editable tests/peers.txt
	$(PIP) "mim4dd[test,lint]"
	$(PIP) --no-deps --requirement tests/peers.txt && touch $@

$(VENV)/.release: $(VENV)/.torch tools/requirements.txt
	$(PIP) --requirement tools/requirements.txt && touch $@

demo: $(INSTALLED)
	$(BIN)/mim4dd compare --iterations 100 --out runs/demo \
		--install-seconds $$(awk '{ sum += $$1 } END { print sum }' $(VENV)/.torch $<)

demo-ipc10: $(INSTALLED)
	$(BIN)/mim4dd compare --ipc 10 --out runs/demo-ipc10

# MTT + MIM4DD with all that was published for CIFAR-10 at one image per class, but fewer experts and
# iterations, on generated pictures in CIFAR-10's files: what runs here runs on the real ones.
SHAPED := runs/cifar-shaped
CIFAR_SHAPED := --data cifar10 --data-path $(SHAPED)/data
demo-cifar-shaped: $(INSTALLED)
	$(BIN)/python bench/cifar_shaped.py $(SHAPED)/data
	$(BIN)/mim4dd experts $(CIFAR_SHAPED) --num-experts 2 --train-epochs 4 --out $(SHAPED)/experts
	$(BIN)/mim4dd distill $(CIFAR_SHAPED) --experts $(SHAPED)/experts --iterations 40 --eval-every 0 \
		--num-eval 2 --out $(SHAPED)/mtt+mim4dd

# What docs/study tells, anew: about an hour of two cores.
STUDY := runs/study
SWEEP = OMP_NUM_THREADS=1 $(BIN)/mim4dd sweep --num-eval 3 --workers 2
EVERY_METHOD := method=mtt,tesla,datm,dc,dsa,cafe,dm,rat_bptt,sre2l
SHAPES := --data shapes --image-size 16 --depth 3 --ipc 10 --seed 1 --seeds 5
study: $(INSTALLED)
	$(SWEEP) --vary $(EVERY_METHOD) --vary weight=0,0.01,0.1,1 \
		--against weight=0 --seed 1 --seeds 5 --out $(STUDY)/methods
	$(SWEEP) --vary method=rat_bptt,sre2l --vary weight=0,1,3 --vary critic=info_nce,l2 \
		--against weight=0 --seed 1 --seeds 5 --out $(STUDY)/contrast
	$(SWEEP) --ipc 10 --vary $(EVERY_METHOD) --vary weight=0,0.1 \
		--against weight=0 --seed 1 --seeds 3 --out $(STUDY)/ipc10
	$(SWEEP) $(SHAPES) --method mtt --num-experts 5 --train-epochs 20 --lr-expert 0.03 \
		--dsa-strategy crop_scale_rotate --expert-epochs 1 --max-start-epoch 8 --syn-steps 20 \
		--batch-syn 25 --lr-img 200 --iterations 80 --one-at-a-time --vary weight=0,0.03,0.3,1 \
		--vary critic=l2 --out $(STUDY)/shapes-mtt
	$(SWEEP) $(SHAPES) --method dm --lr-img 5 --batch-real 128 --iterations 300 \
		--vary weight=0,0.1,1 --against weight=0 --out $(STUDY)/shapes-dm
	$(SWEEP) --one-at-a-time --vary weight=0,0.03,0.3,1 --vary layer_decay=0.25,1 \
		--vary temperature=0.05,0.3 --vary num_keys=50,1000 --vary critic=nce,l2 \
		--vary 'layers=blocks.0|blocks.1' --seeds 3 --out $(STUDY)/mtt
	$(SWEEP) --vary ipc=5,10 --vary weight=0,0.1,1 --against weight=0 --seeds 3 --out $(STUDY)/ipc
	$(SWEEP) --vary critic=nce --vary weight=0.001,0.01 --seeds 3 --out $(STUDY)/nce

# Rows of published tables, ours beside theirs: docs/reproduce. Without ROWS all of them: days.
ROWS :=
DATA_PATH := data
BUDGET := small
reproduce: $(INSTALLED)
	$(BIN)/mim4dd reproduce $(ROWS) --data-path $(DATA_PATH) --budget $(BUDGET) $(REPRODUCE_OPTIONS)

# Threads of several processes share the cores: those that wait must not spin.
test: $(VENV)/.tested
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --durations=10 \
		--dist=worksteal $(TESTS)

# Broken sources, and whether their tests notice: hours; MUTANTS="--files 'csrc/wave*' --limit 20".
mutation: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutation/run.py $(MUTANTS)

# Half an hour of two cores.
launches: $(VENV)/.tested
	mkdir -p $(RESULTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses=auto --dist=worksteal tests/ops \
		--triton-on-cpu --as-h200 --record-launches $(RESULTS)/launches.jsonl \
		-k "not finite_differences and not products_of_every_shape and not contrastive_panels"
	$(BIN)/python bench/compile_launches.py $(RESULTS)/launches.jsonl

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC)
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/zizmor --offline --quiet .github/workflows

# Quarters of an hour each: changed files that readers must refuse or read right, and any inputs of
# losses and unrolls beside float64, other ones in every run.
FILES := 20000
EXAMPLES := 5000
fuzz: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/readers.py --cases $(FILES) --seed $$(date +%s)
	MIM4DD_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest --quiet tests/ops/test_properties_of_losses.py \
		tests/unrolls/test_properties_of_unrolls.py

# What 100,000 losses and 500 unrolls leave behind.
soak: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py

# SIGKILL at random moments of every long command: half an hour, other moments in every run. Files
# are synced; a folder in memory, by TMPDIR=/dev/shm, saves waiting for the disk.
KILLS := 50
kills: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/kills.py --kills $(KILLS) --seed $$(date +%s)
	MIM4DD_DEATHS=20 $(BIN)/python -m pytest -n 0 -q tests/distill/runtime/test_ranks.py -k death

# AddressSanitizer and UndefinedBehaviorSanitizer, then ThreadSanitizer: g++ brings them.
sanitize: $(VENV)/.tested
	$(BIN)/python tools/sanitize.py
	$(BIN)/python tools/sanitize.py --threads

# $(call measure,suites,name): results, table and picture under runs/bench
define measure
	mkdir -p $(RESULTS)
	$(BIN)/python -m pytest $(1) --benchmark-json=$(RESULTS)/$(2).json
	$(BIN)/python bench/report.py $(RESULTS)/$(2).json --plot $(RESULTS)/$(2).png \
		> $(RESULTS)/$(2).md
	cat $(RESULTS)/$(2).md
endef

bench: $(VENV)/.tested
	$(call measure,bench,results)

bench-contrastive: $(VENV)/.tested
	$(call measure,$(CONTRASTIVE) $(BENCH_OPTIONS),contrastive)

bench-unroll: $(VENV)/.tested
	$(call measure,bench/bench_unroll_sgd.py $(BENCH_OPTIONS),unroll)

bench-ranks: $(VENV)/.tested
	$(BIN)/python bench/ranks.py

bench-peers: $(VENV)/.tested
	$(PIP) --no-deps --requirement bench/peers.txt

# GPUs from A100 to Blackwell, whichever is here: setup.py would build for that one alone.
wheel: export TORCH_CUDA_ARCH_LIST ?= 8.0;9.0;10.0;12.0+PTX
wheel: $(VENV)/.release
	rm -rf build/lib* build/bdist* build/wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel .
	$(BIN)/python tools/finish_wheel.py build/wheel/*.whl dist

sdist: $(VENV)/.release
	$(BIN)/python -m build --sdist --no-isolation .

# Each torch that counts, the oldest, ours and the newest, and each Python, at least once.
WHEEL_MATRIX := 3.10:2.11.0 3.11:2.13.0 3.12:2.13.0 3.13:newest
wheel-check:
	$(PYTHON) tools/check_wheel.py $(WHEEL_MATRIX)

# ARM, emulated: apt-get install g++-aarch64-linux-gnu qemu-user-static mmdebstrap
aarch64-check: $(VENV)/.editable
	$(BIN)/python tools/check_aarch64.py

# Every link must lead somewhere, and every name that a docstring links to must be on some page.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs build/site
	@echo "build/site/index.html"

$(VENV)/.docs: $(INSTALLED)
	$(PIP) "mim4dd[docs]" && touch $@

gpu:
	$(PYTHON) bench/gpu.py

gpu-again:
	$(PYTHON) bench/gpu.py --again

# Into dist/, which travels with the checkout: both halves as a wheel, and the Triton kernels that
# `make launches` noted, for an H200. Triton finds them if it is the same there, for the same Python:
#   make gpu-carry VENV=build/gpu-venv PYTHON=python3.12 TORCH=torch==2.11.0
gpu-carry: $(VENV)/.editable wheel
	$(BIN)/python bench/compile_launches.py $(RESULTS)/launches.jsonl --pack dist/triton-cache.tar.xz

gpu-rehearsal: $(VENV)/.tested
	$(BIN)/python bench/rehearse.py runs/rehearsal

clean:
	rm -rf $(VENV) build *.egg-info mim4dd/*.so
