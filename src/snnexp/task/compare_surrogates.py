"""`task=compare_surrogates`: compare surrogates by the runs of a sweep (the lab's part I)."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from snnexp.analysis import comparison, figures
from snnexp.analysis.comparison import VAL, Setting
from snnexp.build import build
from snnexp.config import experiment_of
from snnexp.errors import UserError
from snnexp.record import Record
from snnexp.session import Session
from snnexp.task.base import Task
from snnexp.training import Metrics, load_checkpoint
from snnexp.trial.place import run_of, told_all
from snnexp.trust import check_targets


class CompareSurrogates(Task):
    """Compare the finished runs in the folder `sweep`. Writes figures and the tables settings, ranking and correlation;
    also sparsity if it was measured, and same_peak if surrogates have equal peaks. The configs of the runs may name
    surrogates that `trust.allowed` allows. `run` raises UserError if there are no such runs.
    """

    groups = ("model", "dataset", "neuron", "surrogate")

    def __init__(self, sweep: str) -> None:
        self.sweep = Path(sweep).expanduser()

    def objectives(self, session: Session) -> list[str]:
        return [VAL]

    def run(self, session: Session, record: Record) -> Metrics:
        session.check()
        found = _settings(self.sweep)
        return record.tracked(lambda: _compared(record, found))


def _settings(folder: Path) -> list[Setting]:
    from spikingjelly.activation_based.surrogate import SurrogateFunctionBase

    groups: dict[str, list[tuple[dict[str, Any], Path]]] = {}
    for job, _ in sorted(told_all(folder), key=lambda job: job[0]):
        run = run_of(job)
        if (run / "result.json").exists() and (run / "last.pt").exists():
            config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
            check_targets(config["surrogate"], SurrogateFunctionBase, str(run / "config.yaml"))
            groups.setdefault(json.dumps(config["surrogate"]), []).append((config, run))
    if not groups:
        raise UserError(f"task.sweep={folder}: there are no finished trainings in that folder")
    _alike(folder, [config for runs in groups.values() for config, _ in runs])
    made = []
    for runs in groups.values():
        runs.sort(key=lambda run: run[0]["seed"])
        config = runs[0][0]
        parameter, value = next(((k, v) for k, v in config["surrogate"].items() if isinstance(v, int | float)), ("", 0))
        results = [json.loads((run / "result.json").read_text()) for _, run in runs]
        histories = [load_checkpoint(run / "last.pt")["history"] for _, run in runs]
        made.append(Setting(build("surrogate", config), parameter, value, results, histories))
    return sorted(made, key=lambda setting: (setting.function, setting.value))


def _alike(folder: Path, configs: Sequence[dict[str, Any]]) -> None:
    """Raise UserError if runs differ in more than surrogate and seed: they would count as one setting."""

    def counts(path: Sequence[str]) -> bool:
        return "surrogate" not in path and path[-1] != "seed"

    rest = [{k: v for k, v in experiment_of(config).items() if counts(k.split("."))} for config in configs]
    differing = sorted({key for one in rest for key in one | rest[0] if one.get(key) != rest[0].get(key)})
    if differing:
        where = f"in {', '.join(differing)}: compare sweeps of one setting each"
        raise UserError(f"task.sweep={folder}: its runs differ in more than surrogate and seed, {where}")


def _compared(record: Record, settings: list[Setting]) -> Metrics:
    best = comparison.best_of_each(settings)
    tables = {
        "ranking": comparison.ranking(settings, best),
        "settings": comparison.settings_table(settings),
        "correlation": comparison.correlation(settings),
        "same_peak": comparison.same_peak(settings),
        "sparsity": comparison.sparsity_rows(settings),
    }
    made = {
        "surrogates": figures.surrogates([(s.name, s.surrogate) for s in best]),
        "learning": comparison.learning_figure({s.name: s.learning for s in best}),
        "accuracy": comparison.parameter_figure(comparison.points(settings)),
    }
    if any(not math.isnan(row["potentials"]) for row in tables["sparsity"]):
        made["sparsity"] = comparison.sparsity_figure(tables["sparsity"], tables["settings"])
    record.write(tables, made)
    record.show("ranking", tables["ranking"])
    found = {metric: best[0].mean(metric) for metric in (VAL, "test/accuracy")}
    return found | {"settings": len(settings), "runs": sum(len(s.results) for s in settings)}
