"""What a job knows of the sweep that it belongs to. It comes in an environment variable, which `hydra.job.env_set`
sets with every launcher, and so stays out of the job's config. Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from snnexp.config import quoted
from snnexp.errors import UserError

ENVIRONMENT = "SNNEXP_SWEEP"


@dataclass(frozen=True)
class Address:
    """Where a trial is: its storage, study and id there; how it is pruned; the objective's metrics."""

    storage: str
    study: str
    id: int
    pruner: Mapping[str, Any] | None
    objective: str | list[str]


@dataclass(frozen=True)
class Job:
    """`parent` is the sweep's MLflow run, `varied` the keys that tell its jobs apart; `quiet` when several share a
    terminal; `trial` where this is one.
    """

    parent: str | None = None
    varied: Sequence[str] = ()
    name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    quiet: bool = False
    trial: Address | None = None

    @classmethod
    def current(cls) -> Job | None:
        """The job that this process runs; None outside a sweep."""
        if not (text := os.environ.get(ENVIRONMENT)):
            return None
        known = json.loads(text)
        return cls(**known | {"trial": Address(**known["trial"]) if known["trial"] else None})

    @property
    def override(self) -> str:
        """What tells a job's process of it: an override for Hydra's launchers."""
        return f"++hydra.job.env_set.{ENVIRONMENT}={quoted(json.dumps(asdict(self)))}"

    def variation(self, overrides: Sequence[str]) -> dict[str, str]:
        """What varies, of a job's overrides."""
        pairs = [o.lstrip("+").split("=", 1) for o in overrides if "=" in o]
        return {key: value.strip("'") for key, value in pairs if key in self.varied}


class Reporter:
    """Reports a trial's epochs to its study, and asks the pruner."""

    def __init__(self, address: Address) -> None:
        from snnexp.trial.storage import trial

        self.address, self.trial = address, trial(address)
        self.told = 0

    def hopeless(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Report the epochs in `history` that were not yet, and say whether to stop.

        Raises UserError if there is a pruner, but the objective is no metric of an epoch.
        """
        from snnexp.trial.storage import exclusive

        metric = self.address.objective
        if not isinstance(metric, str):  # Optuna cannot prune by several objectives
            return False
        if metric not in history[-1]:
            if self.address.pruner is None:
                return False
            raise UserError(
                f"a pruner needs the objective after every epoch, and {metric} is known only at the end: "
                f"take one of {', '.join(sorted(history[-1]))}, or hydra.sweeper.pruner=null"
            )
        with exclusive(self.address.storage):
            for epoch in range(self.told, len(history)):
                self.trial.report(history[epoch][metric], epoch + 1)
            self.told = len(history)
            return self.trial.should_prune()


def prune(history: Sequence[Mapping[str, float]]) -> bool:
    """Whether the trial that this process runs is hopeless, with `history` (a dict per epoch) so far."""
    global _reporter
    job = Job.current()
    if job is None or job.trial is None:
        return False
    if _reporter is None or _reporter.address != job.trial:
        _reporter = Reporter(job.trial)
    return _reporter.hopeless(history)


_reporter: Reporter | None = None
