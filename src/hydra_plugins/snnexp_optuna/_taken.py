"""Trials that a study takes over: finished ones of another study or of MLflow, as far as they can be compared."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from hydra_plugins.snnexp_optuna._space import Dimension, Space
from snnexp.errors import UserError
from snnexp.rundir import other_data
from snnexp.trial.counted import TAKEN

KEY = "hydra.sweeper.take_over"
SHOWN = 5  # names per reason
ABSENT = object()


class Unfit(Exception):
    """The reason why something finished does not fit into the study, and what it is about (a value, or nothing)."""

    def __init__(self, reason: str, about: str = "") -> None:
        super().__init__(reason)
        self.reason, self.about = reason, about


@dataclass(frozen=True)
class Finished:
    """A finished trial or run. `key` is its own in all studies that take it over; `value` gives that of a dimension, or
    ABSENT; `names` are the parameters that it has, if that is known; `check(params)` raises Unfit if the rest of its
    configuration differs; `data` are the identities of its data by the attribute of the study that keeps them.
    """

    name: str
    key: str
    values: Sequence[float]
    value: Callable[[Dimension], Any]
    names: Sequence[str] = ()
    check: Callable[[Mapping[str, Any]], None] = lambda params: None
    data: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    epochs: Mapping[int, float] = field(default_factory=dict)


@dataclass
class Source:
    """What one entry of `take_over` gives: the trials that fit, and {reason: names of those that do not}."""

    name: str
    trials: list[FrozenTrial] = field(default_factory=list)
    unfit: dict[str, list[str]] = field(default_factory=dict)
    data: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # by the key of a trial

    def add(self, found: Finished, space: Space) -> None:
        """Add a trial with these values, or the reason why it does not fit."""
        try:
            params = _params(found, space)
            found.check(params)
        except Unfit as error:
            self.leave_out(found.name, error)
            return
        distributions = {d.name: d.distribution for d in space.dimensions if d.name in params}
        attrs = {**found.attributes, TAKEN: {"key": found.key, "from": f"{self.name}, {found.name}"}}
        self.trials.append(
            create_trial(
                values=list(found.values),
                params=params,
                distributions=distributions,
                user_attrs=attrs,
                intermediate_values=dict(found.epochs),
            )
        )
        self.data[found.key] = found.data

    def leave_out(self, name: str, error: Unfit) -> None:
        """Note the reason why the trial or run called `name` is not taken over."""
        self.unfit.setdefault(error.reason, []).append(name + (f": {error.about}" if error.about else ""))

    def described(self) -> list[str]:
        """Return a line for each reason, with the number and the names of those that do not fit."""
        return [
            f"not taken over from {self.name}: {len(names)}, because {reason} ({_brief(names)})"
            for reason, names in self.unfit.items()
        ]

    def check(self) -> None:
        """Raise UserError if nothing fits."""
        if not self.trials:
            lines = self.described() or [f"{self.name} has no finished trials"]
            raise UserError("\n".join([f"{KEY}: nothing can be taken over", *lines]))


def take_over(study: optuna.Study, sources: Sequence[Source]) -> list[str]:
    """Add the trials to the study, without those that it has taken over before; return lines that say what was done.

    A trial is left out if its data are not those of the study. The caller holds the study's lock.
    Raises UserError for a study that is its own source.
    """
    there = study.get_trials(deepcopy=False)
    known = {t.user_attrs[TAKEN]["key"] for t in there if TAKEN in t.user_attrs}
    equal = [(t.params, t.values) for t in finished(there)]  # the same trial, for example as a run of MLflow
    lines = []
    for source in sources:
        new = 0
        for trial in source.trials:
            mark = trial.user_attrs[TAKEN]
            if mark["key"].startswith(study.user_attrs["key"]):
                raise UserError(f"{KEY}: {source.name} is the study that this command continues")
            if mark["key"] in known or (trial.params, trial.values) in equal:
                continue
            try:
                _same_data(study, source.data[mark["key"]])
            except Unfit as error:
                source.leave_out(mark["from"].removeprefix(f"{source.name}, "), error)
                continue
            study.add_trial(trial)
            known.add(mark["key"])
            equal.append((trial.params, trial.values))
            new += 1
        lines += [f"taken over from {source.name}: {new} trial{'s' * (new > 1)}"] if new else []
        lines += source.described()
    return lines


def _same_data(study: optuna.Study, data: Mapping[str, Any]) -> None:
    """Raise Unfit if trials of the study used other data; otherwise let its jobs be compared with these, too."""
    attrs = study.user_attrs
    for key, value in data.items():
        if other_data(attrs.get(key), value):
            raise Unfit(f"its data of {value['name']} are not those of this study")
    for key, value in data.items():
        if key not in attrs:
            study.set_user_attr(key, dict(value))


def _params(found: Finished, space: Space) -> dict[str, Any]:
    if not found.values or not all(map(math.isfinite, found.values)):
        raise Unfit("its objective is not a number")

    def value(d: Dimension) -> Any:
        got = found.value(d)
        if got is ABSENT:
            raise Unfit(f"it has no value for {d.name}")
        if not contains(d, got):
            raise Unfit(f"its {d.name} is outside the search space", str(got))
        return got

    params = space.walk(value)
    here = [name.split(" (")[0] for name in params]
    if more := [name for name in found.names if name not in here]:
        raise Unfit(f"its {more[0]} is not sampled here")
    return params


def contains(d: Dimension, value: Any) -> bool:
    """Return whether the dimension can have this value."""
    try:
        return bool(d.distribution._contains(d.distribution.to_internal_repr(value)))
    except (TypeError, ValueError):
        return False


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that were completed."""
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def _brief(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more
