"""Trials that are means over seeds: one job for each seed, and a decision between two of them."""

import math
import statistics
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from snnexp.config import listed
from snnexp.errors import UserError, integer
from snnexp.sweep.parent import Parent

if TYPE_CHECKING:
    from hydra_plugins.snnexp_optuna._loop import Loop, Outcome

ERROR, RUN = "standard error", "run"  # attributes of a trial: of its means, and the key of its run in the tracker
MARGIN = 2.0  # standard errors by which the mean of a hopeless trial is worse than that of the best trial


def seeds_of(given: Any, first: int) -> tuple[int, ...]:
    """Return the seeds of each trial: `given` as a list, or that many from `first` on; none for null.

    Raises UserError for anything else.
    """
    if given is None:
        return ()
    try:
        if isinstance(given, list):
            seeds = tuple(integer("seeds", seed, at_least=0) for seed in given)
        else:
            seeds = tuple(range(first, first + integer("seeds", given, at_least=2)))
    except ValueError as error:
        raise UserError(f"hydra.sweeper.{error}; or a list of different seeds") from error
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise UserError(f"hydra.sweeper.seeds={given} is not allowed: it must be at least 2 different seeds")
    return seeds


def known(trial: FrozenTrial) -> dict[int, list[float]]:
    """Return the objectives of the seeds that are done."""
    found = {}
    for name, outcome in trial.user_attrs.items():
        kind, _, seed = name.partition(" seed=")
        if kind == "outcome" and seed and outcome["state"] == "COMPLETE":
            found[int(seed)] = list(outcome["values"])
    return found


def kept(trial: FrozenTrial) -> dict[str, Any]:
    """Return the attributes that a repeated trial takes over: its seeds that are done, and its run."""
    done = {f"outcome seed={seed}" for seed in known(trial)}
    return {name: value for name, value in trial.user_attrs.items() if name in done or name == RUN}


def averaged(loop: "Loop", trial: optuna.Trial) -> "Outcome":
    """Run the jobs of a trial, one after the other; return its outcome, with the means of their objectives."""
    key = trial.user_attrs.get(RUN) or uuid.uuid4().hex
    trial.set_user_attr(RUN, key)
    found = known(loop.frozen(trial._trial_id))
    outcome: Outcome = {}
    run = _Run(loop, trial, key)
    with run:
        for seed in loop.seeds:
            if seed in found:
                continue
            if found and (why := hopeless(list(found.values()), loop)):
                outcome = {"state": "PRUNED", "reason": why}
                break
            outcome = loop.run_job(trial, seed, run.parent.run_id)
            if outcome["state"] != "COMPLETE":
                break
            found[seed] = list(outcome["values"])
            run.note(list(found.values()))
        else:
            outcome = _mean(list(found.values()))
            trial.set_user_attr(ERROR, outcome["errors"])
        run.state = outcome["state"]
    return outcome


def hopeless(found: Sequence[Sequence[float]], loop: "Loop") -> str:
    """Return why the trial is hopeless; "" if it is not, or if it cannot be known.

    A trial is hopeless if its mean is worse than that of the best trial by more than two standard errors. They are
    computed from the spread between seeds within all trials of the study.
    """
    if loop.settings["pruner"] is None or len(loop.study.directions) > 1:
        return ""
    others = loop.study.get_trials(deepcopy=False)
    finished = [trial.value for trial in others if trial.state == TrialState.COMPLETE]
    spread = pooled([[values[0] for values in known(trial).values()] for trial in others])
    if not finished or math.isnan(spread):
        return ""
    sign = 1 if loop.study.direction == StudyDirection.MAXIMIZE else -1
    best = sign * max(sign * value for value in finished if value is not None)
    mean, error = statistics.fmean(values[0] for values in found), spread / math.sqrt(len(found))
    if sign * (best - mean) <= MARGIN * error:
        return ""
    seeds = f"{len(found)} seed{'s' * (len(found) > 1)}"
    return f"mean {mean:.4g} over {seeds}, more than {MARGIN:g} standard errors ({error:.2g}) from {best:.4g}"


def pooled(groups: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation within the groups, pooled over all of them; nan if no group has two values."""
    several = [values for values in groups if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in several)
    return math.sqrt(squares / freedom) if freedom else math.nan


def _mean(found: Sequence[Sequence[float]]) -> dict[str, Any]:
    columns = list(zip(*found, strict=True))
    errors = [statistics.stdev(column) / math.sqrt(len(column)) for column in columns]
    return {"state": "COMPLETE", "values": [statistics.fmean(column) for column in columns], "errors": errors}


class _Run(AbstractContextManager["_Run"]):
    """The run of a trial in the tracker, in which the runs of its seeds are nested."""

    def __init__(self, loop: "Loop", trial: optuna.Trial, key: str) -> None:
        self.names, self.state = listed(loop.objective), "FAIL"
        sweep, number = loop.parent, trial.number
        name, tags = loop.named(trial), loop.tags(trial) | {"task": "trial"}
        params: Mapping[str, Any] = {**trial.params, "seeds": ",".join(map(str, loop.seeds))}
        self.parent = Parent(sweep.config, sweep.folder / str(number), name, params, tags, key, under=sweep.run_id)

    def __enter__(self) -> "_Run":
        self.parent.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind:
            self.parent.__exit__(kind, error, trace)
        else:
            self.parent.close({"COMPLETE": "FINISHED", "PRUNED": "PRUNED"}.get(self.state, "FAILED"))  # type: ignore[arg-type]

    def note(self, found: Sequence[Sequence[float]]) -> None:
        """Log the means so far and, from two seeds on, their standard errors; a step is a number of seeds."""
        made = _mean(found) if len(found) > 1 else {"values": found[0], "errors": []}
        values = dict(zip(self.names, made["values"], strict=True))
        errors = {f"{name} {ERROR}": error for name, error in zip(self.names, made["errors"], strict=False)}
        self.parent.tracker.metrics(values | errors, len(found))


def seed_folder(folder: Path, seed: int | None) -> Path:
    """Return the folder of a seed's job in the folder of its trial."""
    return folder if seed is None else folder / f"seed={seed}"
