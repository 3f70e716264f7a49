"""The sweeper that Hydra finds. Without `n_trials` a multirun is a grid, with it an Optuna study.

Hydra imports this at every start, so optuna and all that is heavy comes in later. (And it imports this in a way that
a dataclass does not survive together with `from __future__ import annotations`.)
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from snnexp.errors import UserError

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@dataclass
class StudyConf:
    """hydra.sweeper: what a sweep may set, in its YAML or on the command line. docs/sweeps.md explains each."""

    _target_: str = "hydra_plugins.snnexp_optuna.sweeper.StudySweeper"
    _recursive_: bool = False

    # how many trials the study has in the end, whoever runs them; null: no study, a grid
    n_trials: int | None = None
    # what is sampled: {key: range in Hydra's grammar, or {other key: {its value: range}}}
    space: dict[str, Any] = field(default_factory=dict)
    # maximize | minimize; a list of them for several objectives
    direction: Any = "maximize"
    # the study's name; null: made of the sweep's name and a digest of all that must not change within a study
    study: str | None = None
    # sqlite:///FILE, journal:FILE, postgresql://...; null: optuna.db in outputs_dir
    storage: str | None = None
    # {_target_: optuna.samplers..., ...}; null: TPESampler with the config's seed
    sampler: Any = None
    # {_target_: optuna.pruners..., ...}; null: no trial is pruned
    pruner: Any = None
    # trials at once; null: what the launcher is set to (joblib: n_jobs), else 1
    parallel: int | None = None
    # no new trials after so many seconds
    timeout: float | None = None
    # how often a trial whose job died is run again
    retries: int = 2
    # give up after so many failed trials in a row
    max_failures: int = 5
    # each job of a study a process of its own, whose death costs no other; null: unless the launcher makes one
    isolate: bool | None = None
    # a parent on another machine is taken for dead if it was silent for so many seconds
    silence: float = 90.0


ConfigStore.instance().store(group="hydra/sweeper", name="snnexp", node=StudyConf, provider="snnexp")


class StudySweeper(Sweeper):
    """A grid or a study, on whatever launcher is chosen."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Choose the launcher: several at once need one that runs several."""
        from hydra_plugins.snnexp_optuna._job import Work

        launcher = config.hydra.launcher
        if (self.settings["parallel"] or 1) > 1 and launcher._target_ == BASIC:
            launcher = OmegaConf.create({"_target_": JOBLIB, "prefer": "processes", "verbose": 0})
        if launcher._target_ == JOBLIB and self.settings["parallel"]:
            launcher = OmegaConf.merge(launcher, {"n_jobs": self.settings["parallel"]})
        with open_dict(config):
            config.hydra.launcher = launcher
        isolate = self.settings["isolate"]
        if isolate is None:
            study = self.settings["n_trials"] is not None
            isolate = launcher._target_ == JOBLIB or (study and launcher._target_ == BASIC)
        self.settings["outlives"] = launcher._target_ != BASIC  # its jobs may outlive us
        work = Work(task_function, isolate, self.settings["outlives"])
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=work, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs. Raises UserError for a study that cannot be, before any of them."""
        if self.settings["n_trials"] is None:
            if self.settings["space"] or any("interval(" in argument for argument in arguments):
                raise UserError("a range is sampled, by a study: say how many trials with hydra.sweeper.n_trials=N")
            return self._grid(arguments)
        from hydra_plugins.snnexp_optuna._study import sweep

        assert self.hydra_context is not None
        assert self.config is not None
        return sweep(self.settings, self.config, self.hydra_context.config_loader, self.launcher, arguments)

    def _grid(self, arguments: list[str]) -> Any:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        grid = BasicSweeper(max_batch_size=None)
        grid.hydra_context, grid.config, grid.launcher = self.hydra_context, self.config, self.launcher
        return grid.sweep(arguments)
