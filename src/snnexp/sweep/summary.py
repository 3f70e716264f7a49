"""Summary of a sweep: a table with mean and spread over seeds, the best job, figures."""

from __future__ import annotations

import logging
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp.analysis import seeds
from snnexp.analysis.seeds import SEED, minimized
from snnexp.errors import UserError
from snnexp.files import read_json
from snnexp.trial.job import Job, label
from snnexp.trial.place import told_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("snnexp.sweep")
Rows = Sequence[Mapping[str, Any]]
ALSO = ("val/accuracy", "test/accuracy", "test/spikes_per_sample", "epochs", "seconds")


@dataclass(frozen=True)
class Child:
    """A finished or failed job: its values of the varied keys, its final metrics, and the reason of a failure."""

    number: int
    name: str
    varied: Mapping[str, str]
    metrics: Mapping[str, float]
    overrides: Sequence[str]
    run_id: str | None = None
    reason: str = ""
    folder: Path | None = None


def children(folder: Path) -> list[Child]:
    """Return the jobs of the sweep in `folder`, sorted by number; log a warning for those that cannot be read."""
    found = []
    for job, told in told_all(folder):
        try:
            if "reason" in told or (job / "job.json").exists():
                found.append(_child(job, told))
        except (UserError, KeyError, TypeError) as error:
            said = error if isinstance(error, UserError) else f"{job / 'job.json'} cannot be read: it describes no job"
            log.warning("left out of the summary: %s", said)
    return sorted(found, key=lambda child: child.number)


def _child(folder: Path, told: Mapping[str, Any]) -> Child:
    if (job := read_json(folder / "job.json")) is None:  # it was refused before it had a record
        varied = Job(varied=told["varied"]).variation(told["overrides"])
        return Child(told["number"], label(varied), varied, {}, told["overrides"], reason=told["reason"])
    folder = folder / job["folder"]  # with resume=true, it may be the folder of a job of an earlier sweep
    result, state = (read_json(folder / name) or {} for name in ("result.json", "tracking.json"))
    run = job["name"], job["varied"], result, job["overrides"], state.get("run_id")
    return Child(told["number"], *run, told.get("reason", ""), folder)


def best(found: Sequence[Child], metric: str, lower: bool | None = None) -> list[Child]:
    """Return the finished jobs of the setting with the best mean of `metric` over its seeds, the best job first.

    `lower`: whether lower values are better (None: by the metric's kind).

    Settings with fewer finished jobs than another are passed over: the mean of one seed may be luck.
    """
    sign = -1 if (minimized(metric) if lower is None else lower) else 1
    finished = [child for child in found if not math.isnan(child.metrics.get(metric, math.nan))]
    settings = seeds.grouped(finished)
    whole = [group for group in settings if len(group) == max(map(len, settings))]
    chosen = max(whole, key=lambda group: sign * mean(group, metric)[0], default=[])
    return sorted(chosen, key=lambda child: -sign * child.metrics[metric])


def mean(group: Sequence[Child], metric: str) -> tuple[float, float]:
    """Return the mean of `metric` over the jobs, and its standard error (nan for one job)."""
    values = [child.metrics[metric] for child in group]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def table(found: Sequence[Child], objective: Sequence[str], lower: bool | None = None) -> list[dict[str, Any]]:
    """Return a row per setting with mean and spread over its seeds, sorted by the first objective, best first."""
    rows = seeds.table(found, list(dict.fromkeys([*objective, *ALSO])), lower)
    for group in seeds.grouped(found):
        setting = seeds.setting(group[0])
        if reasons := [_failure(child) for child in group if child.reason]:
            row = next(row for row in rows if {key: row.get(key) for key in setting} == setting)
            row["failed"] = "; ".join(dict.fromkeys(reasons))
    return rows


def _failure(child: Child) -> str:
    return f"seed {child.varied[SEED]}: {child.reason}" if SEED in child.varied else child.reason


def markdown(rows: Rows) -> str:
    """Return the rows as a Markdown table, a mean and its spread in one cell."""
    columns = seeds.columns(rows)
    cells = [columns, *([seeds.cell(row, key) for key in columns] for row in rows)]
    lines = [[_line(cell).replace("|", r"\|") for cell in line] for line in cells]
    lines.insert(1, ["---"] * len(columns))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plain(rows: Rows) -> list[dict[str, str]]:
    """Return the rows as text, a mean and its spread in one cell, each cell in one line."""
    columns = seeds.columns(rows)
    return [{_line(key): _line(seeds.cell(row, key)) for key in columns} for row in rows]


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def figure(found: Sequence[Child], metric: str) -> Figure:
    """Draw the metric of every job as a dot, and the mean of each setting as a line."""
    from snnexp.analysis.style import BLUE, panels  # imported late: it loads matplotlib

    settings: dict[str, list[float]] = {}
    for child in found:
        if metric in child.metrics:
            name = ", ".join(f"{k}={v}" for k, v in child.varied.items() if k != SEED) or "all"
            settings.setdefault(name, []).append(child.metrics[metric])
    order = sorted(settings, key=lambda name: statistics.fmean(settings[name]), reverse=minimized(metric))
    made, (axes,) = panels(1, 1, 7, 1.2 + 0.34 * len(order))
    for y, name in enumerate(order):
        values = settings[name]
        axes.plot(values, [y] * len(values), "o", color=BLUE, alpha=0.5, markeredgewidth=0)
        axes.plot([statistics.fmean(values)] * 2, [y - 0.3, y + 0.3], color=BLUE, linewidth=2)
    axes.set_yticks(range(len(order)), order)
    axes.set(xlabel=metric, title="every job (dots) and the mean of its setting (line)")
    return made
