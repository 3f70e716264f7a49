"""The place of a job in its sweep.

It is passed in an environment variable, which every launcher sets from `hydra.job.env_set`, and so is not part of the
job's config. Imports nothing heavy.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from snnexp.config import GROUPS, quoted

VARIABLE = "SNNEXP_SWEEP"


@dataclass(frozen=True)
class Address:
    """The place of a trial (storage, study, and id in that storage), its pruner, and the metrics of its objective.

    `outcome` is the attribute of the trial that receives the outcome of this job; if the job `reports`, the pruner sees
    its epochs. Both matter for a trial of several seeds, which has a job for each. `wait` is the longest time in
    seconds to wait for the storage.
    """

    storage: str
    study: str
    id: int
    pruner: Mapping[str, Any] | None
    objective: str | list[str]
    outcome: str = "outcome"
    reports: bool = True
    wait: float = 0.0


@dataclass(frozen=True)
class Job:
    """A job: `parent` is the MLflow run of its sweep, `varied` are the keys in which jobs differ, `quiet` is true if
    several jobs share a terminal, `trial` is set in a study, and `sweep` is the folder of the sweep.
    """

    parent: str | None = None
    varied: Sequence[str] = ()
    name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    quiet: bool = False
    trial: Address | None = None
    sweep: str | None = None

    @classmethod
    def current(cls) -> Self | None:
        """Return the job that this process runs; None outside a sweep."""
        if not (text := os.environ.get(VARIABLE)):
            return None
        known = json.loads(text)
        return cls(**known | {"trial": Address(**known["trial"]) if known["trial"] else None})

    @property
    def override(self) -> str:
        """The Hydra override that passes this job to its process."""
        return f"++hydra.job.env_set.{VARIABLE}={quoted(json.dumps(asdict(self)))}"

    def variation(self, overrides: Sequence[str]) -> dict[str, str]:
        """Return the job's overrides in which jobs differ, as {key: value}."""
        pairs = [o.lstrip("+").split("=", 1) for o in overrides if "=" in o]
        return {key: value.strip("'") for key, value in pairs if key in self.varied}


def label(variation: Mapping[str, str]) -> str:
    """Return a short name for a job, since the UI cuts long ones: `sine alpha=2 seed=0`.

    The key of a group is left out, and so are the parts of a key before the last, unless two keys end alike.
    """
    ends = [key.rpartition(".")[2] for key in variation]
    keys = {key: end if ends.count(end) == 1 else key for key, end in zip(variation, ends, strict=True)}
    return " ".join(value if key in GROUPS else f"{keys[key]}={value}" for key, value in variation.items())
