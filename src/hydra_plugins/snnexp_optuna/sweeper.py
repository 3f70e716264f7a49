"""The sweeper plugin that Hydra discovers. Without `n_trials` a multirun is a grid, with it an Optuna study.

Hydra imports this at every start, so optuna and other heavy modules are imported late. The way it imports plugins also
breaks dataclasses in a module with `from __future__ import annotations`, which is therefore absent here.
"""

import random
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from snnexp.errors import UserError, integer_or_none, told
from snnexp.masking import masked

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
GRID = ("_target_", "_recursive_", "space", "direction", "parallel", "gpus", "isolate")  # the keys that a grid reads


@dataclass
class StudyConf:
    """The keys of hydra.sweeper, set in the YAML of a sweep or on the command line. docs/sweeps.md explains each."""

    _target_: str = "hydra_plugins.snnexp_optuna.sweeper.StudySweeper"
    _recursive_: bool = False

    # number of trials of the finished study, in all processes together; null: a grid, not a study
    n_trials: int | None = None
    # the search space: {key: range in Hydra's grammar, or {other key: {its value: range}}}
    space: dict[str, Any] = field(default_factory=dict)
    # points with which the study starts, ahead of those of the sampler: a list of {key: value}; null: none
    start: Any = None
    # finished trials to learn from: {study: NAME, storage: FILE_OR_URL} or {mlflow: EXPERIMENT_OR_RUN_ID}, or a list
    take_over: Any = None
    # maximize or minimize; a list of these for several objectives; null: by the metric's kind (val/loss: minimize)
    direction: Any = None
    # number of seeds (from the config's seed on), or a list of them: a trial is the mean over these; null: one job each
    seeds: Any = None
    # name of the study; null: the sweep's name and a digest of everything that must not change within a study
    study: str | None = None
    # sqlite:///FILE, journal:FILE, postgresql://...; null: optuna.db in outputs_dir
    storage: str | None = None
    # {_target_: optuna.samplers..., ...}; null: TPESampler with the config's seed
    sampler: Any = None
    # {_target_: optuna.pruners..., ...}; null: no trial is pruned
    pruner: Any = None
    # number of simultaneous trials; null: n_jobs of the joblib launcher, 1 with other launchers
    parallel: int | None = None
    # a GPU for each job on this machine: a number of GPUs, or a list of them; null: all jobs see all GPUs
    gpus: Any = None
    # seconds after which no new trial begins
    timeout: float | None = None
    # no new trial begins once a trial has reached this value of the objective (a list for several; null: any value)
    target: Any = None
    # no new trial begins after this number of trials in a row without a better one; null: no limit
    patience: int | None = None
    # no new trial begins once the study's trials have taken this number of hours together; null: no limit
    hours: float | None = None
    # how often a trial is repeated if its job dies
    retries: int = 2
    # stop after this number of consecutive failed trials
    max_failures: int = 5
    # seconds to wait for a storage or disk that fails, before the sweep stops; the same command goes on from there
    wait: float = 600.0
    # run each job in a process of its own, so that its death affects no other; null: unless the launcher does that
    isolate: bool | None = None
    # seconds without a heartbeat after which a parent on another machine counts as dead
    silence: float = 90.0


ConfigStore.instance().store(group="hydra/sweeper", name="snnexp", node=StudyConf, provider="snnexp")


class StudySweeper(Sweeper):
    """Run a grid or a study with any launcher."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher; simultaneous jobs need joblib unless another launcher is chosen."""
        from hydra_plugins.snnexp_optuna._compose import composing_once
        from hydra_plugins.snnexp_optuna._devices import gpus_of
        from hydra_plugins.snnexp_optuna._job import Work

        with told():
            integer_or_none("hydra.sweeper.parallel", self.settings["parallel"], at_least=1)
        self._replace_parts(config)
        launcher = config.hydra.launcher
        if (self.settings["parallel"] or 1) > 1 and launcher._target_ == BASIC:
            launcher = OmegaConf.create({"_target_": JOBLIB, "prefer": "processes", "verbose": 0})
        if launcher._target_ == JOBLIB and self.settings["parallel"]:
            launcher = OmegaConf.merge(launcher, {"n_jobs": self.settings["parallel"]})
        with open_dict(config):
            config.hydra.launcher = launcher
        if "submitit_folder" in launcher and masked(plain := OmegaConf.to_container(config)) != plain:
            jobs = Path(str(config.hydra.launcher.submitit_folder)).parent  # submitit stores the config of each job
            jobs.mkdir(mode=0o700, parents=True, exist_ok=True)
        isolate = self.settings["isolate"]
        if isolate is None:
            study = self.settings["n_trials"] is not None
            isolate = launcher._target_ == JOBLIB or (study and launcher._target_ == BASIC)
        gpus = gpus_of(self.settings["gpus"])
        if gpus and launcher._target_ not in (BASIC, JOBLIB):
            raise UserError("hydra.sweeper.gpus is for jobs on this machine: on a cluster, use hydra.launcher.*")
        if gpus and not isolate and launcher._target_ == JOBLIB:
            raise UserError("hydra.sweeper.gpus needs a process for each job: leave out hydra.sweeper.isolate=false")
        self.settings["outlives"] = launcher._target_ != BASIC  # its jobs may outlive this process
        work = Work(task_function, isolate, self.settings["outlives"], gpus)
        self.hydra_context, self.config = composing_once(hydra_context), config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=work, config=config
        )

    def _replace_parts(self, config: DictConfig) -> None:
        """Let a whole sampler or pruner of the command line replace that of a YAML, with which Hydra has merged it."""
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra.core.override_parser.overrides_parser import OverridesParser

        texts: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
        given = OverridesParser.create().parse_overrides(texts)
        for name in ("sampler", "pruner"):
            key = f"hydra.sweeper.{name}"
            ours = [o for o in given if f"{o.key_or_group}.".startswith(f"{key}.")]
            whole = [i for i, o in enumerate(ours) if o.key_or_group == key and isinstance(o.value(), dict)]
            if whole:
                with open_dict(config):
                    config.hydra.sweeper[name] = None
                    ConfigLoaderImpl._apply_overrides_to_config(ours[whole[-1] :], config)
                self.settings[name] = config.hydra.sweeper[name]

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs. Raises UserError for invalid settings before any job starts."""
        assert self.config is not None
        random.seed(self.config.get("seed"))  # Hydra's shuffle(...), so that the same command continues the same sweep
        if self.settings["n_trials"] is None:
            if any("interval(" in argument for argument in arguments):
                raise UserError(
                    "a range needs a study that samples it: give the number of trials with hydra.sweeper.n_trials=N"
                )
            if self.settings["seeds"] is not None:
                raise UserError(
                    "hydra.sweeper.seeds is for a study (hydra.sweeper.n_trials=N): in a grid, write seed=0,1,2"
                )
            if unread := [k for k, v in asdict(StudyConf()).items() if k not in GRID and self.settings.get(k, v) != v]:
                keys = ", ".join(f"hydra.sweeper.{key}" for key in unread)
                raise UserError(
                    f"{keys}: only a study reads this (hydra.sweeper.n_trials=N), and this sweep is a grid, which runs "
                    "every combination once"
                )
            return self._grid(arguments)
        from hydra_plugins.snnexp_optuna._study import sweep

        assert self.hydra_context is not None
        return sweep(self.settings, self.config, self.hydra_context.config_loader, self.launcher, arguments)

    def _grid(self, arguments: list[str]) -> Any:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        assert self.config is not None
        grid = BasicSweeper(max_batch_size=None)
        shown = DictConfig(masked(OmegaConf.to_container(self.config)))  # it is written to multirun.yaml
        OmegaConf.copy_cache(self.config, shown)  # of ${now:...}, which the folder's name has
        if self.settings["space"]:
            from hydra_plugins.snnexp_optuna._grid import jobs  # late: optuna

            assert self.hydra_context is not None
            listed, _ = jobs(self.settings["space"], self.config, self.hydra_context.config_loader, arguments)
            grid.split_arguments = lambda overrides, max_batch_size: [listed]  # type: ignore[method-assign]
        grid.hydra_context, grid.config, grid.launcher = self.hydra_context, shown, self.launcher
        from snnexp.callbacks import Grid

        with Grid.open.watched() if Grid.open else nullcontext():
            return grid.sweep(arguments)
