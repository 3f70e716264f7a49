"""Rehearse sampler and pruner in memory: what they lack or refuse is told before the first trial."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler

from hydra_plugins.snnexp_optuna._space import Space
from snnexp.errors import UserError


def rehearse(sampler: BaseSampler, pruner: optuna.pruners.BasePruner, space: Space, directions: Sequence[Any]) -> None:
    """Sample a point of the space after a few random ones, and prune it. Raises UserError if either fails."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # of this study in memory, the user need not know
    study = optuna.create_study(directions=list(directions), sampler=RandomSampler(seed=0))
    for number in range(getattr(sampler, "_n_startup_trials", 0) + 2):  # before these, most samplers sample at random
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, [float(number)] * len(directions))
    study.sampler = sampler
    try:
        trial = study.ask()
        space.suggest(trial)
    except Exception as error:  # samplers raise many kinds of errors, ImportError among them
        raise _refused("sampler", sampler, error) from error
    if len(directions) > 1:
        return
    study.pruner = pruner
    try:
        trial.report(0.0, 1)
        trial.should_prune()
    except Exception as error:
        raise _refused("pruner", pruner, error) from error


def _refused(name: str, made: object, error: Exception) -> UserError:
    said = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"hydra.sweeper.{name}={type(made).__name__} cannot be used with this space: {said}")
