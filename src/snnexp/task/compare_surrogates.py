"""`task=compare_surrogates`: what the runs of a sweep over surrogates say together (the lab's part I)."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from scipy import stats
from torch import nn

from snnexp.analysis import figures
from snnexp.analysis.tables import Rows
from snnexp.build import build
from snnexp.config import experiment_of
from snnexp.errors import UserError
from snnexp.session import Session
from snnexp.surrogate import curve
from snnexp.task.train import report
from snnexp.training import Metrics, load_checkpoint

VAL = "val/accuracy"
SPEED = 0.95  # an epoch's accuracy counts as learnt at this share of the best setting's


@dataclass(frozen=True)
class Setting:
    """One surrogate at one value of its parameter (its first), and its runs: final metrics and epochs, by seed."""

    surrogate: nn.Module
    parameter: str
    value: float
    results: list[Metrics]
    histories: list[list[Metrics]]

    @property
    def function(self) -> str:
        return type(self.surrogate).__name__

    @property
    def name(self) -> str:
        return f"{self.function} {self.parameter}={self.value:g}"

    def each(self, metric: str) -> list[float]:
        return [result[metric] for result in self.results if metric in result]

    def mean(self, metric: str) -> float:
        return statistics.fmean(self.each(metric) or [math.nan])

    @property
    def learning(self) -> list[float]:
        """Validation accuracy by epoch, mean over the seeds."""
        return [statistics.fmean(m[VAL] for m in epoch) for epoch in zip(*self.histories, strict=False)]

    def epochs_to(self, level: float) -> float:
        """The first epoch whose mean validation accuracy reaches `level`; nan if none does."""
        return next((float(epoch) for epoch, value in enumerate(self.learning, 1) if value >= level), math.nan)

    @cached_property
    def shape(self) -> dict[str, float]:
        """Of g': its peak, its area on |x| <= 2, and the width in which it is at least a hundredth of the peak (at most
        8: what is wider reaches everywhere that potentials are)."""
        x = torch.linspace(-4, 4, 8001, dtype=torch.float64)
        slope = curve(self.surrogate, x).derivative
        near, peak = x.abs() <= 2, float(slope.max())
        return {
            "peak": peak,
            "area": float(torch.trapezoid(slope[near], x[near])),
            "support": float((slope >= 0.01 * peak).double().mean()) * 8,
        }


def compare_surrogates(session: Session, sweep: str) -> Metrics:
    """Tables (settings, ranking, correlation; where it was measured sparsity, where peaks agree same_peak) and figures
    over the finished runs in the folder `sweep`. Raises UserError if there are none.
    """
    session.check()
    found = _settings(Path(sweep).expanduser())
    return session.tracked(lambda: _compared(session, found))


def _settings(folder: Path) -> list[Setting]:
    groups: dict[str, list[tuple[dict[str, Any], Path]]] = {}
    for job in sorted(folder.glob("*/job.json")):
        run = Path(json.loads(job.read_text())["folder"])
        if (run / "result.json").exists() and (run / "last.pt").exists():
            config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
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
        made.append(
            Setting(
                build("surrogate", config),
                parameter,
                value,
                results,
                [load_checkpoint(run / "last.pt")["history"] for _, run in runs],
            )
        )
    return sorted(made, key=lambda setting: (setting.function, setting.value))


def _alike(folder: Path, configs: Sequence[dict[str, Any]]) -> None:
    """Raises UserError where runs differ in more than surrogate and seed: they would count as seeds of one setting."""
    rest = [
        {
            key: value
            for key, value in experiment_of(config).items()
            if "surrogate" not in key.split(".") and key.split(".")[-1] != "seed"
        }
        for config in configs
    ]
    differing = sorted({key for one in rest for key in one | rest[0] if one.get(key) != rest[0].get(key)})
    if differing:
        raise UserError(
            f"task.sweep={folder}: its runs differ in more than surrogate and seed, in "
            f"{', '.join(differing)}: compare sweeps of one setting each"
        )


def _compared(session: Session, settings: list[Setting]) -> Metrics:
    best = _best_of_each(settings)
    tables = {
        "ranking": _ranking(settings, best),
        "settings": _table(settings),
        "correlation": _correlation(settings),
        "same_peak": _same_peak(settings),
        "sparsity": _sparsity(settings),
    }
    made = {
        "surrogates": figures.surrogates([(s.name, s.surrogate) for s in best]),
        "learning": figures.learning({s.name: s.learning for s in best}),
        "accuracy": figures.accuracy_against_parameter(_points(settings)),
    }
    if any(not math.isnan(row["potentials"]) for row in tables["sparsity"]):
        made["sparsity"] = figures.zeros_by_width(tables["sparsity"], tables["settings"])
    report(session, {name: rows for name, rows in tables.items() if rows}, made)
    return {
        VAL: best[0].mean(VAL),
        "test/accuracy": best[0].mean("test/accuracy"),
        "settings": len(settings),
        "runs": sum(len(s.results) for s in settings),
    }


def _best_of_each(settings: Sequence[Setting]) -> list[Setting]:
    """Of each function the setting with the best mean validation accuracy, best function first."""
    best: dict[str, Setting] = {}
    for setting in sorted(settings, key=lambda s: -s.mean(VAL)):
        best.setdefault(setting.function, setting)
    return list(best.values())


def _points(settings: Sequence[Setting]) -> dict[str, list[tuple[float, list[float]]]]:
    """By function: (value, test accuracies)."""
    points: dict[str, list[tuple[float, list[float]]]] = {}
    for s in settings:
        points.setdefault(f"{s.function} ({s.parameter})", []).append((s.value, s.each("test/accuracy")))
    return points


def _table(settings: Sequence[Setting]) -> Rows:
    level = SPEED * max(s.mean(VAL) for s in settings)
    return [
        {
            "surrogate": s.function,
            "parameter": s.parameter,
            "value": s.value,
            "seeds": len(s.results),
            **{
                f"{metric}{end}": take(s.each(metric))
                for metric in (VAL, "test/accuracy")
                for end, take in (("", statistics.fmean), (" sd", _sd))
            },
            f"epochs to {level:.3f}": s.epochs_to(level),
            "spikes per sample": s.mean("test/spikes_per_sample"),
            **s.shape,
        }
        for s in settings
    ]


def _ranking(settings: Sequence[Setting], best: Sequence[Setting]) -> Rows:
    """Functions at their best value (by validation), with a 95 % confidence interval of the mean test accuracy.

    A few seeds say little of their own spread: the standard deviation is pooled over all settings that learnt."""
    learnt = [s.each("test/accuracy") for s in settings if s.mean(VAL) > 0.5 * best[0].mean(VAL) and len(s.results) > 1]
    freedom = sum(len(values) - 1 for values in learnt)
    pooled = math.sqrt(sum((len(v) - 1) * statistics.variance(v) for v in learnt) / freedom) if freedom else math.nan
    rows = []
    for rank, s in enumerate(best, 1):
        half = float(stats.t.ppf(0.975, freedom)) * pooled / math.sqrt(len(s.results)) if freedom else math.nan
        mean = s.mean("test/accuracy")
        rows.append(
            {
                "rank": rank,
                "surrogate": s.function,
                "value": s.value,
                "seeds": len(s.results),
                VAL: s.mean(VAL),
                "test/accuracy": mean,
                "low": mean - half,
                "high": mean + half,
            }
        )
    return rows


def _correlation(settings: Sequence[Setting]) -> Rows:
    """Spearman's rank correlation of the shape with mean accuracy and with speed, over all settings."""
    level, rows = SPEED * max(s.mean(VAL) for s in settings), []
    if len(settings) < 4:
        return []
    for name in settings[0].shape:
        shape = [s.shape[name] for s in settings]
        for what, values in (
            ("test accuracy", [s.mean("test/accuracy") for s in settings]),
            ("epochs to learn (never: last)", [_or_last(s.epochs_to(level)) for s in settings]),
        ):
            if len(set(shape)) > 1 and len(set(values)) > 1:
                found = stats.spearmanr(shape, values)
                rows.append(
                    {
                        "shape": name,
                        "with": what,
                        "rho": float(found.statistic),
                        "p": float(found.pvalue),
                        "settings": len(settings),
                    }
                )
    return rows


def _same_peak(settings: Sequence[Setting]) -> Rows:
    """Settings of equal peak side by side, with the epochs to the accuracy that all of them reach."""
    rows = []
    for peak in sorted({round(s.shape["peak"], 3) for s in settings}):
        members = [s for s in settings if round(s.shape["peak"], 3) == peak]
        if len(members) > 1:
            level = min(max(s.learning) for s in members)
            rows += [
                {
                    "peak": peak,
                    "surrogate": s.name,
                    "equal accuracy": level,
                    "epochs to it": s.epochs_to(level),
                    "test/accuracy": s.mean("test/accuracy"),
                    "test/accuracy sd": _sd(s.each("test/accuracy")),
                    "skippable": s.mean("sparsity/skippable"),
                }
                for s in members
            ]
    return rows


def _sparsity(settings: Sequence[Setting]) -> Rows:
    """What task=gradient_sparsity recorded, by setting, epoch and layer, mean over the seeds."""
    rows = []
    for s in settings:
        for epoch, metrics in enumerate(zip(*s.histories, strict=False), 1):
            keys = [key for key in metrics[0] if key.startswith("sparsity/")]
            layers: dict[str, dict[str, float]] = {}
            for key in keys:
                _, what, *layer = key.split("/", 2)
                layers.setdefault(layer[0] if layer else "all", {})[what] = statistics.fmean(m[key] for m in metrics)
            rows += [
                {
                    "surrogate": s.function,
                    "value": s.value,
                    "epoch": epoch,
                    "layer": layer,
                    **{
                        what: shares.get(what, math.nan)
                        for what in ("potentials", "currents", "weights", "rate", "skippable")
                    },
                }
                for layer, shares in layers.items()
            ]
    return rows


def _sd(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _or_last(epochs: float) -> float:
    return 1e9 if math.isnan(epochs) else epochs
