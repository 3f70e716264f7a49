"""The finding of a sweep, in sentences made from its numbers: the best setting, and how the others compare with it."""

import math
import statistics
from collections.abc import Sequence

from scipy import stats

from snnexp.analysis import seeds
from snnexp.analysis.seeds import SEED, short
from snnexp.report.document import Name, Paragraph
from snnexp.report.results import Result

METRIC, CHOSEN_BY = "test/accuracy", "val/accuracy"
NAMED = 6  # settings in a sentence; the table has all
LEVEL = 0.05  # of all comparisons together


def finding(found: Sequence[Result], label: str) -> list[Paragraph]:
    """Return a paragraph on the settings of `found`; none if there are fewer than two, or nothing was tested.

    The best is chosen by validation. Differences in the test are paired by seed; their intervals of Student's t hold
    together at 95 % (Bonferroni).
    """
    groups = [group for group in seeds.grouped(found) if all({METRIC, CHOSEN_BY} <= r.metrics.keys() for r in group)]
    if len(groups) < 2:
        return []
    best = max(groups, key=lambda group: statistics.fmean(_values(group, CHOSEN_BY).values()))
    others = [group for group in groups if group is not best]
    values = list(_values(best).values())
    words: list[str | Name] = ["By validation the best is ", Name(_named(best)), f": {METRIC} "]
    words += [f"{short(statistics.fmean(values), 4)}{_interval(values)}. "]
    kinds: dict[str, list[str]] = {}
    for other in others:
        kinds.setdefault(_compared(best, other, len(others)), []).append(_named(other))
    for kind, names in kinds.items():
        words += [f"{kind} ", Name(_listed(names)), ". "]
    return [Paragraph(words, label)]


def _values(group: Sequence[Result], metric: str = METRIC) -> dict[str, float]:
    return {result.seed: result.metrics[metric] for result in group}


def _named(group: Sequence[Result]) -> str:
    return " ".join(f"{key}={value}" for key, value in group[0].varied.items() if key != SEED)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} other settings" if more > 0 else "")


def _half_width(values: Sequence[float], comparisons: int = 1) -> float:
    """Return half of the interval of Student's t for the mean of at least two values."""
    quantile = stats.t.ppf(1 - LEVEL / 2 / comparisons, len(values) - 1)
    return float(quantile) * statistics.stdev(values) / math.sqrt(len(values))


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return " (one seed)"
    half = _half_width(values)
    low, high = max(0.0, statistics.fmean(values) - half), min(1.0, statistics.fmean(values) + half)
    return f" (mean of {len(values)} seeds, 95 % interval {short(low, 4)} to {short(high, 4)})"


def _compared(best: Sequence[Result], other: Sequence[Result], comparisons: int) -> str:
    """Return how the test of `best` differs from that of `other`, as the beginning of a sentence."""
    ours, theirs = _values(best), _values(other)
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(differences) < 2:
        return "With fewer than two common seeds nothing can be said of its difference to"
    half = _half_width(differences, comparisons)
    mean = statistics.fmean(differences)
    if abs(mean) <= half:
        return "In the test it cannot be told apart from"
    return "In the test it is better than" if mean > 0 else "In the test it is worse than"
