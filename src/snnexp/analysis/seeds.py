"""Combine runs that differ only in their seed into one row: mean and standard deviation over the seeds."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

SEED = "seed"
LOWER = {"loss", "spikes", "error", "residual", "remainder", "unevenness", "seconds", "epochs"}  # words in metrics
HIGHER = {"accuracy", "agreement"}


class Outcome(Protocol):
    """A run: what distinguishes it from the others, and its final metrics (none if it did not finish)."""

    @property
    def varied(self) -> Mapping[str, str]: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...


Run = TypeVar("Run", bound=Outcome)


def kind(metric: str) -> Literal["maximize", "minimize"] | None:
    """Return the direction in which a metric improves, by the words in its name; None if they do not tell."""
    words = set(re.split(r"[^a-z]+", metric.lower()))
    return "minimize" if words & LOWER else "maximize" if words & HIGHER else None


def minimized(metric: str) -> bool:
    """Return whether lower values of a metric are better, if nothing else is set."""
    return kind(metric) == "minimize"


def setting(outcome: Outcome) -> dict[str, str]:
    """Return what varied besides the seed."""
    return {key: value for key, value in outcome.varied.items() if key != SEED}


def grouped(found: Sequence[Run]) -> list[list[Run]]:
    """Group runs by setting, in the order in which settings first appear."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for outcome in found:
        groups.setdefault(tuple(setting(outcome).items()), []).append(outcome)
    return list(groups.values())


def table(found: Sequence[Outcome], metrics: Sequence[str], lower: bool | None = None) -> list[dict[str, Any]]:
    """Return a row for each setting: the number of seeds (`n`), and mean and standard deviation (of the sample) of the
    metrics over them; the best by the first metric comes first (`lower`: the lowest; None: by the metric's kind)."""
    rows = []
    for members in grouped(found):
        row: dict[str, Any] = {**setting(members[0]), "n": sum(bool(member.metrics) for member in members)}
        for metric in metrics:
            if values := [member.metrics[metric] for member in members if metric in member.metrics]:
                row[metric] = statistics.fmean(values)
                row[f"{metric} std"] = statistics.stdev(values) if len(values) > 1 else math.nan
        rows.append(row)
    first, sign = metrics[0], 1 if (minimized(metrics[0]) if lower is None else lower) else -1
    return sorted(rows, key=lambda row: (first not in row, sign * row.get(first, 0.0)))


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of the rows, with a mean and its spread as one column."""
    return list(dict.fromkeys(key for row in rows for key in row if not key.endswith(" std")))


def cell(row: Mapping[str, Any], key: str) -> str:
    """Return a value as text, a mean with its spread."""
    value, spread = row.get(key, ""), row.get(f"{key} std", math.nan)
    text = short(value, 4) if isinstance(value, float) else "" if value is None else str(value)
    return text if math.isnan(spread) else f"{text} ± {short(spread, 2)}"


def short(value: float, digits: int) -> str:
    """Round to `digits` significant digits; larger numbers print as integers."""
    return f"{value:.0f}" if 10**digits <= abs(value) < math.inf else f"{value:.{digits}g}"
