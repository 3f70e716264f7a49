"""The report on a study, as files in the folder of the sweep and artifacts of its run: tables, best trials, figures."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from hydra_plugins.snnexp_optuna._loop import Loop
from hydra_plugins.snnexp_optuna._owner import lock_of_trial
from hydra_plugins.snnexp_optuna._seeds import ERROR
from snnexp.config import listed
from snnexp.files import replace, replace_by
from snnexp.rundir import write_csv
from snnexp.sweep import summary
from snnexp.sweep.command import experiment_command
from snnexp.sweep.experiment import experiment, threads_of, write_experiment
from snnexp.trial.counted import TAKEN, source
from snnexp.trial.dominated import by_epoch
from snnexp.trial.place import told

log = logging.getLogger("snnexp.sweep")
COMPLETE = [TrialState.COMPLETE]


def report_study(loop: Loop, config: DictConfig, loader: ConfigLoader) -> None:
    """Write and log study.json, trials.csv, summary.md, experiment/best*.yaml and figures/; print the summary."""
    study, folder, tracker, names = loop.study, loop.parent.folder, loop.parent.tracker, listed(loop.objective)
    trials = study.get_trials(deepcopy=False)
    replace(folder / "study.json", json.dumps(_as_json(study, trials, names), indent=2, default=str))
    rows = [_row(trial, names) for trial in trials]
    if rows:
        write_csv(folder / "trials.csv", rows)
    chosen = _best(study)
    for trial in chosen:
        name = "best" if len(names) == 1 else f"best_{trial.number}"
        threads = threads_of(told(lock_of_trial(trial)))
        overrides = [*loop.fixed, *loop.space.overrides(trial.params), *threads]
        comment = f"trial {trial.number} of {study.study_name}: {_values(trial, names)}"
        comment += _where(trial)
        write_experiment(folder, name, experiment(loader, config, overrides, comment))
    _figures(study, names, folder / "figures")
    tracker.tags({f"trials.{state}": str(count) for state, count in _counts(trials).items()})
    if len(names) == 1 and chosen:
        tracker.metrics({f"best/{names[0]}": chosen[0].values[0]}, step=len(trials))
        tracker.tags({"best": f"trial {chosen[0].number}"})
    loop.parent.publish(_text(loop, config, trials, chosen, names), "study.json", "trials.csv")


def _best(study: optuna.Study) -> list[FrozenTrial]:
    """Return the best trial or, with several objectives, the Pareto front."""
    if not study.get_trials(deepcopy=False, states=COMPLETE):
        return []
    if len(study.directions) == 1:
        return [study.best_trial]
    return sorted(study.best_trials, key=lambda trial: trial.values)


def _text(
    loop: Loop, config: DictConfig, trials: Sequence[FrozenTrial], chosen: Sequence[FrozenTrial], names: Sequence[str]
) -> list[str | summary.Rows]:
    study = loop.study
    counts = ", ".join(f"{count} {state}" for state, count in _counts(trials).items())
    parts: list[str | summary.Rows] = [f"{study.study_name}: {len(trials)} trials ({counts})"]
    parts += [f"ended early: {loop.ended}"] if loop.ended else []
    parts += [f"- {line}" for line in loop.taken]
    if len(names) > 1 and chosen:
        parts += ["Pareto front:", [_row(trial, names) for trial in chosen]]
    elif chosen:
        best = chosen[0]
        shown = f"{loop.space.shown(best.params)}: {_values(best, names)}"
        parts += [f"best: trial {best.number}{_where(best)}, {shown}"]
        sign = -1 if study.direction.name == "MAXIMIZE" else 1
        ranked = sorted((t for t in trials if t.state in COMPLETE), key=lambda t: sign * t.values[0])
        parts += [[_row(trial, names) for trial in ranked[:5]]]
    if chosen:
        file = "best" if len(names) == 1 else f"best_{chosen[0].number}"
        parts += [f"run it with `{experiment_command(config, loop.parent.folder, file)}`"]
    return parts


def _where(trial: FrozenTrial) -> str:
    return f" (taken over from {source(trial)})" if source(trial) else ""


def _counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    states = [TAKEN if source(trial) else trial.state.name.lower() for trial in trials]
    return {state: states.count(state) for state in dict.fromkeys(sorted(states))}


def _values(trial: FrozenTrial, names: Sequence[str]) -> str:
    errors = trial.user_attrs.get(ERROR, [])
    shown = [f"{name} {value:.4g}" for name, value in zip(names, trial.values, strict=True)]
    return (
        ", ".join(f"{text} ± {error:.2g}" for text, error in zip(shown, errors, strict=True))
        if errors
        else ", ".join(shown)
    )


def _row(trial: FrozenTrial, names: Sequence[str]) -> dict[str, Any]:
    values = trial.values or [None] * len(names)
    taken = {"taken over from": source(trial)} if source(trial) else {}
    seconds = trial.duration.total_seconds() if trial.duration and not taken else None
    outcome = {"trial": trial.number, "state": trial.state.name, **dict(zip(names, values, strict=True))}
    outcome |= {f"{name} {ERROR}": error for name, error in zip(names, trial.user_attrs.get(ERROR, []), strict=False)}
    return outcome | trial.params | {"epochs": len(by_epoch(trial)) or None, "seconds": seconds} | taken


def _as_json(study: optuna.Study, trials: Sequence[FrozenTrial], names: Sequence[str]) -> dict[str, Any]:
    objectives = dict(zip(names, (d.name.lower() for d in study.directions), strict=True))
    described = {"study": study.study_name, "objectives": objectives, "identity": study.user_attrs.get("identity")}
    return described | {"trials": [_trial_as_json(trial) for trial in trials]}


def _trial_as_json(trial: FrozenTrial) -> dict[str, Any]:
    plain = {name: getattr(trial, name) for name in ("number", "values", "params", "intermediate_values", "user_attrs")}
    distributions = {name: json.loads(distribution_to_json(d)) for name, d in trial.distributions.items()}
    times = {"start": trial.datetime_start, "complete": trial.datetime_complete}
    return plain | {"state": trial.state.name, "distributions": distributions} | times


def _figures(study: optuna.Study, names: Sequence[str], folder: Path) -> None:
    """Draw Optuna's figures with matplotlib: PNG files need no browser and no internet."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(exist_ok=True)
    for name, draw in _drawings(study, names):
        try:
            with warnings.catch_warnings(action="ignore"):
                axes = draw()
                first = axes.flat[0] if hasattr(axes, "flat") else axes
                draw_to = partial(first.figure.savefig, format="png", dpi=110, bbox_inches="tight")
            replace_by(folder / f"{name}.png", draw_to)
        except Exception as error:  # too few trials, or no two trials with common parameters
            log.debug("no figure %s: %s", name, error)
        finally:
            pyplot.close("all")


def _drawings(study: optuna.Study, names: Sequence[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    from optuna.visualization import matplotlib as plots

    complete, many = study.get_trials(deepcopy=False, states=COMPLETE), len(names) > 1
    if not complete:
        return
    if many and len(names) <= 3:
        yield "pareto", lambda: plots.plot_pareto_front(study, target_names=list(names))
    for index, name in enumerate(names):
        more: dict[str, Any] = {"target_name": name} | ({"target": partial(_value, index=index)} if many else {})
        end = f"_{index}" if many else ""
        yield f"history{end}", partial(plots.plot_optimization_history, study, **more)
        yield f"slice{end}", partial(plots.plot_slice, study, **more)
        yield f"parallel_coordinates{end}", partial(plots.plot_parallel_coordinate, study, **more)
        if len(complete) > 1:
            yield f"importance{end}", partial(plots.plot_param_importances, study, **more)
    if any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):  # none with several objectives
        yield "intermediate_values", lambda: plots.plot_intermediate_values(study)


def _value(trial: FrozenTrial, index: int) -> float:
    return float(trial.values[index])
