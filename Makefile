# Every target sets up what it needs: a fresh clone, Python >= 3.11 and make are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=
DATA   ?= embedded
IMAGES ?= dataset=cifar10 data_dir=$(DATA_DIR)

.DEFAULT_GOAL := help
.PHONY: help setup run ui sweep-alpha sweep-threshold few-spike few-spike-coefficients test test-slow test-cluster lint format bench wheel clean

help:  ## list the targets
	@grep -E '^[a-z][a-z0-9-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## make .venv with the pinned packages (a minute or two)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "snnexp needs Python >= 3.11, and $(PYTHON) is older: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(READY)  ## the main job: two-layer SNN on the embedded event data (ARGS='key=value ...' for overrides)
	$(BIN)/snnexp $(ARGS)

ui: $(READY)  ## open the MLflow UI on http://127.0.0.1:5000 over what was logged (PORT=...)
	$(BIN)/snnexp task=ui $(if $(PORT),task.port=$(PORT)) $(ARGS)

sweep-alpha: $(READY)  ## a small Optuna sweep over the surrogate's alpha on the embedded data (minutes)
	$(BIN)/snnexp -m +sweep=surrogate_alpha hydra.sweeper.n_trials=8 trainer.epochs=5 model.hidden=128 $(ARGS)

sweep-threshold: $(READY)  ## the same over the neuron's threshold
	$(BIN)/snnexp -m +sweep=neuron_threshold hydra.sweeper.n_trials=8 trainer.epochs=5 model.hidden=128 $(ARGS)

FEW_SPIKE = tracking.experiment=few-spike $(ARGS)
FEW_SPIKE_embedded = dataset=digits dataset.augment.crop=1 optimizer.lr=0.05 trainer.epochs=15
FEW_SPIKE_real = $(IMAGES) dataset.augment.crop=4 dataset.augment.flip=true optimizer.lr=0.1 trainer.epochs=100

few-spike: $(READY)  ## few-spike neurons: coefficients, figures and the paper's table (DATA=real DATA_DIR=... for CIFAR-10)
	$(BIN)/snnexp task=fit_few_spike activation=relu K=[2,4,6,8,10] $(FEW_SPIKE)
	$(BIN)/snnexp task=fit_few_spike activation=silu K=[6,8,10,12,16] range=[-8,12] task.rounds=400 $(FEW_SPIKE)
	$(BIN)/snnexp task=fit_few_spike activation=sigmoid K=[6,8,10,12] range=[-10,10] task.rounds=400 $(FEW_SPIKE)
	$(BIN)/snnexp task=few_spike conversion=few_spike model=resnet20 neuron=relu timesteps=10 task.depths=[8,14,20,50] \
	  loss=cross_entropy optimizer=sgd optimizer.weight_decay=1e-4 scheduler=cosine $(FEW_SPIKE_$(DATA)) $(FEW_SPIKE)

few-spike-coefficients: $(READY)  ## fit the shipped coefficients of few-spike neurons anew, with their seeds (minutes)
	$(BIN)/python bench/few_spike_coefficients.py $(ARGS)

test: $(READY)  ## run the tests (minutes)
	$(BIN)/pytest -m 'not slow' $(ARGS)

test-slow: $(READY)  ## run the tests that take minutes each: kills, servers, the wheel
	$(BIN)/pytest -m slow $(ARGS)

test-cluster: $(READY)  ## run sweeps on SLURM and PostgreSQL, started here (Debian; installs them if it is root)
	tests/cluster/install.sh
	$(BIN)/pytest -m cluster tests/cluster $(ARGS)

lint: $(READY)  ## ruff and mypy (strict on src/)
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy

bench: $(READY)  ## measure speed against named peers (DATA_DIR=folder with nmnist/ for the real recordings)
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/image_pipeline.py --rounds 3 --batches 100
	$(BIN)/python bench/train_image.py --rounds 3 --steps 6
	$(BIN)/python bench/sweep_overhead.py
	$(BIN)/python bench/sweep_parallel.py
	$(BIN)/python bench/train_two_layer.py $(if $(DATA_DIR),--data $(DATA_DIR)/nmnist) $(ARGS)
	$(if $(DATA_DIR),$(BIN)/python bench/load_frames.py --data $(DATA_DIR))
	$(if $(DATA_DIR),$(BIN)/python bench/nmnist_accuracy.py --data $(DATA_DIR)/nmnist)

wheel: $(READY)  ## build dist/*.whl, which carries the configs
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove build and cache files; never outputs/ or .venv
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests bench -name __pycache__ -type d -exec rm -rf {} +
