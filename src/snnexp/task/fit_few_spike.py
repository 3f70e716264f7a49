"""`task=fit_few_spike`: fit coefficients h, d, T of few-spike neurons to an activation."""

import csv
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from snnexp.activations import Interval, named
from snnexp.analysis import few_spike as drawn
from snnexp.errors import InvalidValue, integer, number, require
from snnexp.few_spike.fit import Density, fit_table
from snnexp.few_spike.table import Fitted, measured, relu, save_tables
from snnexp.record import Record, Rows
from snnexp.session import Session
from snnexp.task.base import Task
from snnexp.terminal import LayerBar
from snnexp.training import Metrics


class FitFewSpike(Task):
    """Fit coefficients for each of `K` and each range; write <activation>.yaml, a table and figures; return the errors.

    `range`: [low, high]; None: the ranges of the shipped coefficients. `spikes`: the largest mean number of spikes
    (None: K/4). `distribution` of the inputs: uniform, or a CSV file with columns x and weight. `rounds`: length of the
    search. ReLU's coefficients are analytic, for inputs from 0 to high. Raises InvalidValue.
    """

    def __init__(
        self,
        activation: str,
        K: int | list[int],
        range: list[float] | None,
        spikes: float | None,
        distribution: str,
        rounds: int,
    ) -> None:
        require(K != [], "K", K, "an integer >= 1, or a list of them")
        self.activation = self.subject = activation
        self.steps = [integer("K", k, at_least=1) for k in (K if isinstance(K, list) else [K])]
        shipped = named(activation).ranges or ((-8.0, 8.0),)
        self.intervals = shipped if range is None else (_interval(range),)
        self.limit = None if spikes is None else number("spikes", spikes, "a number > 0, or null", above=0)
        self.rounds = integer("rounds", rounds, at_least=10)
        self.density = _density(distribution)

    def run(self, session: Session, record: Record) -> Metrics:
        return record.tracked(lambda: _reported(record, self._fits(session.seed)))

    def _fits(self, seed: int) -> list[Fitted]:
        torch.set_num_threads(1)
        with LayerBar("fit") as bar:
            return [self._fitted(interval, K, seed, bar) for interval in self.intervals for K in self.steps]

    def _fitted(self, interval: Interval, K: int, seed: int, bar: LayerBar) -> Fitted:
        if self.activation == "relu":
            return measured(self.activation, interval, relu(K, torch.tensor(interval[1], dtype=torch.float64)))
        title = f"{self.activation} K={K} on {list(interval)}"
        limit, report = self.limit or K / 4, partial(bar.report, name=title)
        return fit_table(
            self.activation, interval, K, limit, rounds=self.rounds, seed=seed, density=self.density, report=report
        )


def _reported(record: Record, fits: list[Fitted]) -> Metrics:
    activation = fits[0].activation
    save_tables(fits, record.folder / f"{activation}.yaml")
    record.artifact(f"{activation}.yaml")
    fitted = []
    for fit in fits:
        head = {"activation": activation, "low": fit.range[0], "high": fit.range[1], "K": fit.table.K}
        fitted.append(head | _errors(fit))
    tables: dict[str, Rows] = {"fit": fitted}
    last = max((f for f in fits if f.range == fits[0].range), key=lambda f: f.table.K)
    made = {"approximation": drawn.approximation(last), "raster": drawn.raster(last)}
    if len(fits) > 1:
        made["error"] = drawn.errors(fits)
    if activation == "relu":
        codes = drawn.codes()
        made["codes"] = drawn.error_against_steps(codes)
        tables["codes"] = [
            {"code": code, "steps": steps, "rms_error": error, "spikes": count}
            for code, points in codes.items()
            for steps, error, count in points
            if code == "few spikes" or (steps & (steps + 1)) == 0  # rate: at 2^k - 1
        ]
    record.write(tables, made)
    record.show(f"few-spike neurons for {activation}", fitted)
    result: Metrics = {}
    for one in fits:
        found = _errors(one)
        where = "" if one.range == fits[0].range else f"_{one.range[0]:g}_{one.range[1]:g}"
        record.metrics({f"{name}{where}": value for name, value in found.items()}, step=one.table.K)
        result |= {f"{name}{where}_K{one.table.K}": value for name, value in found.items()}
    return result


def _errors(fit: Fitted) -> dict[str, float]:
    return {"mse": fit.mse, "largest": fit.largest, "spikes": fit.spikes}


def _interval(given: list[float]) -> Interval:
    pair = isinstance(given, list) and len(given) == 2 and all(isinstance(v, int | float) for v in given)
    fits = pair and given[0] < given[1] and given[1] > 0
    require(fits, "range", given, "two numbers [low, high], low < high and high > 0")
    return float(given[0]), float(given[1])


def _density(distribution: str) -> Density | None:
    """Return weights of inputs from a CSV file, interpolated between its rows; None for uniform."""
    if distribution == "uniform":
        return None
    try:
        with Path(distribution).expanduser().open(encoding="utf-8", newline="") as file:
            rows = sorted((float(row["x"]), float(row["weight"])) for row in csv.DictReader(file))
    except (OSError, KeyError, ValueError, TypeError) as error:
        allowed = f"uniform, or a CSV file with columns x and weight ({error})"
        raise InvalidValue("distribution", distribution, allowed) from error
    if len(rows) < 2 or min(weight for _, weight in rows) < 0 or not sum(weight for _, weight in rows) > 0:
        raise InvalidValue("distribution", distribution, "a file of two rows or more, with weights of at least 0")
    x, weight = (torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True))

    def density(at: Tensor) -> Tensor:
        right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
        share = ((at - x[right - 1]) / (x[right] - x[right - 1]).clamp(min=1e-12)).clamp(0, 1)
        between = weight[right - 1] + share * (weight[right] - weight[right - 1])
        inside = (at >= x[0]) & (at <= x[-1])
        floor = 1e-6 * weight.max()  # no input is without weight
        return torch.where(inside, between, floor).clamp(min=float(floor))

    return density
