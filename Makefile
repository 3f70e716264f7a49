# Every target sets up what it needs: a fresh clone needs only Python >= 3.11 and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=
DATA   ?= embedded
IMAGES ?= dataset=cifar10 data_dir=$(DATA_DIR)

# `make labs` runs these targets one after another and ends with a report on all of them.
LABS := lab1-surrogates lab1-sweep lab1-sparsity \
        lab2-dynamics lab2-unevenness lab2-mitigation lab2-wideresnet lab2-dvs few-spike
comma := ,
$(if $(filter tracking=none,$(ARGS)),$(if $(filter labs $(LABS),$(MAKECMDGOALS)),\
  $(error $(filter labs $(LABS),$(MAKECMDGOALS)) ends with a report on what MLflow has: leave tracking=none out of ARGS)))
# The last line of a target whose runs are logged to the MLflow experiment of its name: $(call report,$@)
report = $(BIN)/snnexp task=report task.experiments=[$(1)] $(filter outputs_dir=% tracking.%,$(ARGS))

.DEFAULT_GOAL := help
.PHONY: help setup run ui report labs sweep-alpha sweep-threshold lab1-surrogates lab1-sweep lab1-sparsity \
        lab2-dynamics lab2-unevenness lab2-mitigation lab2-wideresnet lab2-dvs \
        few-spike few-spike-coefficients tables test test-slow test-faults test-cluster lint format bench wheel clean

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

run: $(READY)  ## run the main job: a two-layer SNN on the embedded event data (ARGS='key=value ...' for overrides)
	$(BIN)/snnexp $(ARGS)

ui: $(READY)  ## open the MLflow UI with all logged runs, on http://127.0.0.1:5000 (PORT=...)
	$(BIN)/snnexp task=ui $(if $(PORT),task.port=$(PORT)) $(ARGS)

report: $(READY)  ## write outputs/reports/*.html and .md from the logged runs (ARGS='task.experiments=[NAME]' chooses)
	$(BIN)/snnexp task=report $(ARGS)

labs: $(LABS)  ## run every lab target on the embedded data and report on all: outputs/reports/labs.html (about half an hour)
	$(call report,$(subst $() $(),$(comma),$(LABS))) task.name=labs

sweep-alpha: $(READY)  ## search the surrogate's alpha with Optuna on the embedded data (minutes)
	$(BIN)/snnexp -m +sweep=surrogate_alpha hydra.sweeper.n_trials=8 trainer.epochs=5 model.hidden=128 $(ARGS)

sweep-threshold: $(READY)  ## search the neuron's threshold with Optuna in the same way
	$(BIN)/snnexp -m +sweep=neuron_threshold hydra.sweeper.n_trials=8 trainer.epochs=5 model.hidden=128 $(ARGS)

# The computer lab, part I (docs/lab1.md). RUN=<value of an earlier call> resumes that call.
RUN  := $(or $(RUN),$(shell date +%Y-%m-%d-%H%M%S))
lab1_real   = dataset=nmnist dataset.root=$(DATA_DIR)/nmnist
lab1_data   = $(if $(filter real,$(DATA)),$(lab1_real),model.hidden=128 trainer.epochs=8 trainer.threads=1)
lab1_folder = multirun/$@/$(RUN)
lab1_runs   = tracking.experiment=$@ resume=true 'hydra.sweep.dir=$${outputs_dir}/$(lab1_folder)' $(lab1_data) $(ARGS)
lab1_study  = $(lab1_runs) 'hydra.sweeper.storage=journal:$${hydra.sweep.dir}/optuna.log' hydra.sweeper.parallel=2
lab1_report = task=compare_surrogates 'task.sweep=$${outputs_dir}/$(lab1_folder)' tracking.experiment=$@ $(lab1_data) $(ARGS)

lab1-surrogates: $(READY)  ## compare the surrogates sine, S(x), and power, P(x), with Sigmoid (DATA=real DATA_DIR=folder with nmnist/: the real N-MNIST)
	$(BIN)/snnexp -m surrogate=sigmoid,sine,power seed=0,1,2,3,4 $(lab1_runs)
	$(BIN)/snnexp $(lab1_report)
	$(call report,$@)

lab1-sweep: $(READY)  ## train each surrogate at several values of its parameter with several seeds: accuracy, ranking, correlations
	$(BIN)/snnexp -m +sweep=surrogate_values$(if $(filter real,$(DATA)),_all) $(lab1_study)
	$(BIN)/snnexp $(lab1_report)
	$(call report,$@)

lab1-sparsity: $(READY)  ## make a surrogate narrower: count gradients that are exactly zero, measure accuracy and speed of learning
	$(BIN)/snnexp -m +sweep=surrogate_width task=gradient_sparsity model.readout=potential loss=cross_entropy $(lab1_study)
	$(BIN)/snnexp $(lab1_report)
	$(call report,$@)

# The computer lab, part II (docs/lab2.md, docs/lab2_dvs.md). IMAGES: the images of DATA=real; ARGS='checkpoint=FILE' skips the training.
lab2_of  = $(if $(filter real,$(DATA)),experiment=cifar10_$(1)_qcfs $(IMAGES),experiment=digits_$(2)_qcfs trainer.threads=1)
lab2_run = conversion=qcfs calibration.images=8 tracking.experiment=$@  # thresholds are learnt, so nothing is calibrated

lab2-dynamics: $(READY)  ## check phi = W phi' + b - (v(T) - v(0))/T on every layer (DATA=real DATA_DIR=...: CIFAR-10)
	$(BIN)/snnexp task=dynamics $(lab2_run) 'timesteps=[1,2,4,8,16,32]' $(call lab2_of,resnet20,wrn) $(ARGS)
	$(call report,$@)

lab2-unevenness: $(READY)  ## simulate neurons with two inputs for all orders of spikes; then show where a network's neurons fire too often or too seldom
	$(BIN)/snnexp task=unevenness $(lab2_run) 'timesteps=[1,2,4,8,16,32]' $(call lab2_of,resnet20,convnet) $(ARGS)
	$(call report,$@)

lab2-mitigation: $(READY)  ## compare mitigations of unevenness errors, and their cost, at equal total steps
	$(BIN)/snnexp task=mitigations $(lab2_run) 'timesteps=[4,8,16]' $(call lab2_of,resnet20,wrn) $(ARGS)
	$(call report,$@)

lab2-wideresnet: $(READY)  ## train and convert a wide residual network, and show its unevenness layer by layer
	$(BIN)/snnexp task=unevenness $(lab2_run) 'timesteps=[1,2,4,8,16,32]' $(call lab2_of,wrn,wrn) $(ARGS)
	$(call report,$@)

lab2-dvs: $(READY)  ## compare QCFS on event recordings with a directly trained SNN (DATA=real DATA_DIR=folder with cifar10_dvs/)
	$(BIN)/snnexp experiment=lab2_dvs$(if $(filter real,$(DATA)),_real dataset.root=$(DATA_DIR)/cifar10_dvs) tracking.experiment=$@ $(ARGS)
	$(call report,$@)

FEW_SPIKE = tracking.experiment=few-spike $(ARGS)
FEW_SPIKE_embedded = dataset=digits dataset.augment.crop=1 optimizer.lr=0.05 trainer.epochs=15
FEW_SPIKE_real = $(IMAGES) dataset.augment.crop=4 dataset.augment.flip=true optimizer.lr=0.1 trainer.epochs=100

few-spike: $(READY)  ## fit few-spike neurons and make the table of Stoeckl and Maass (2021) (DATA=real DATA_DIR=... for CIFAR-10)
	$(BIN)/snnexp task=fit_few_spike task.activation=relu 'task.K=[2,4,6,8,10]' $(FEW_SPIKE)
	$(BIN)/snnexp task=fit_few_spike task.activation=silu 'task.K=[6,8,10,12,16]' 'task.range=[-8,12]' task.rounds=400 $(FEW_SPIKE)
	$(BIN)/snnexp task=fit_few_spike task.activation=sigmoid 'task.K=[6,8,10,12]' 'task.range=[-10,10]' task.rounds=400 $(FEW_SPIKE)
	$(BIN)/snnexp task=few_spike conversion=few_spike model=resnet20 neuron=relu timesteps=10 'task.depths=[8,14,20,50]' \
	  loss=cross_entropy optimizer=sgd optimizer.weight_decay=1e-4 scheduler=cosine $(FEW_SPIKE_$(DATA)) $(FEW_SPIKE)
	$(call report,$@)

few-spike-coefficients: $(READY)  ## repeat the fit of snnexp's own coefficients of few-spike neurons, with the same seeds (minutes)
	$(BIN)/python bench/few_spike_coefficients.py $(ARGS)

tables: $(READY)  ## write the tables of options and the figure in README.md and docs/ from their sources
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/figures.py

test: $(READY)  ## run the tests (minutes)
	$(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal -m 'not slow' $(ARGS)

test-slow: $(READY)  ## run the slow tests (minutes each): killed runs, servers, browsers, the wheel
	-tests/browser/install.sh
	$(BIN)/pytest -m slow $(ARGS)

test-faults: $(READY)  ## run the fault tests, which kill runs, let servers fail, fill disks and damage files (FAULTS=10: ten times as often; FAULTS_SEED=...)
	FAULTS=$(or $(FAULTS),1) FAULTS_SEED=$(or $(FAULTS_SEED),0) FAULTS_TABLE=$(FAULTS_TABLE) $(BIN)/pytest -m faults tests/faults $(ARGS)

test-cluster: $(READY)  ## test sweeps with SLURM and PostgreSQL, which it starts on this machine (on Debian, root also installs them)
	tests/cluster/install.sh
	$(BIN)/pytest -m cluster tests/cluster $(ARGS)

format: $(READY)  ## format the code and sort its imports with ruff
	$(BIN)/ruff check --quiet --select I --fix src tests bench docs
	$(BIN)/ruff format src tests bench docs

lint: $(READY)  ## check the code with ruff (rules and format) and mypy (strict on src/)
	$(BIN)/ruff check src tests bench docs
	$(BIN)/ruff format --check src tests bench docs
	$(BIN)/mypy

bench: $(READY)  ## compare the speed with SpikingJelly, torchvision, plain PyTorch, Hydra and Optuna (DATA_DIR=folder with nmnist/ for the real recordings)
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/image_pipeline.py --rounds 3 --batches 100
	$(BIN)/python bench/train_image.py --rounds 3 --steps 6
	$(BIN)/python bench/sweep_overhead.py
	$(BIN)/python bench/sweep_parallel.py
	$(BIN)/python bench/train_two_layer.py $(if $(DATA_DIR),--data $(DATA_DIR)/nmnist) $(ARGS)
	$(if $(DATA_DIR),$(BIN)/python bench/load_frames.py --data $(DATA_DIR))
	$(if $(DATA_DIR),$(BIN)/python bench/nmnist_accuracy.py --data $(DATA_DIR)/nmnist)

wheel: $(READY)  ## build dist/*.whl, which contains the configs
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove build and cache files, but not outputs/ or .venv
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests bench -name __pycache__ -type d -exec rm -rf {} +
