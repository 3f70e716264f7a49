"""`task=fit_few_spike`: coefficients h, d, T of few-spike neurons for an activation."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from snnexp.activations import named
from snnexp.analysis import few_spike as drawn
from snnexp.analysis import figures, tables
from snnexp.errors import InvalidValue, UserError, integer, number, require
from snnexp.few_spike.fit import Density, fit_table
from snnexp.few_spike.table import Fitted, measured, relu, save_tables
from snnexp.session import Session
from snnexp.terminal import LayerBar
from snnexp.training import Metrics

Interval = tuple[float, float]


def fit_few_spike(
    session: Session,
    activation: str,
    K: int | list[int],
    range: list[float] | None,
    spikes: float | None,
    distribution: str,
    rounds: int,
) -> Metrics:
    """Fit for each of `K` and each range; writes <activation>.yaml, a table and figures. Returns the errors.

    `range`: [low, high]; null: those of the shipped coefficients. `spikes`: at most so many on average (null: K/4).
    `distribution` of the inputs: uniform, or a CSV file with columns x and weight. ReLU is analytic, from 0 to high.
    Raises UserError for wrong values.
    """
    try:
        shipped = named(activation).ranges or ((-8.0, 8.0),)
        require(K != [], "K", K, "an integer >= 1, or a list of them")
        steps = [integer("K", k, at_least=1) for k in (K if isinstance(K, list) else [K])]
        intervals = shipped if range is None else (_interval(range),)
        limit = None if spikes is None else number("spikes", spikes, "a number > 0, or null", above=0)
        integer("rounds", rounds, at_least=10)
    except InvalidValue as error:
        raise error.told(error.name if error.name != "rounds" else "task.rounds") from error
    density = _density(distribution)

    def work() -> Metrics:
        torch.set_num_threads(1)
        fits = []
        with LayerBar("fit") as bar:
            for interval in intervals:
                for k in steps:
                    fits.append(_fitted(activation, interval, k, limit or k / 4, density, rounds, session.seed, bar))
        return _reported(session, fits)

    return session.tracked(work)


def _fitted(
    activation: str,
    interval: Interval,
    K: int,
    limit: float,
    density: Density | None,
    rounds: int,
    seed: int,
    bar: LayerBar,
) -> Fitted:
    if activation == "relu":
        return measured(activation, interval, relu(K, torch.tensor(interval[1], dtype=torch.float64)))
    return fit_table(
        activation,
        interval,
        K,
        limit,
        rounds=rounds,
        seed=seed,
        density=density,
        report=lambda done, whole: bar.report(done, whole, f"{activation} K={K} on {list(interval)}"),
    )


def _reported(session: Session, fits: list[Fitted]) -> Metrics:
    folder, tracker, activation = session.run_dir, session.tracker, fits[0].activation
    save_tables(fits, folder / f"{activation}.yaml")
    written: dict[str, tables.Rows] = {
        "fit": [
            {
                "activation": activation,
                "low": f.range[0],
                "high": f.range[1],
                "K": f.table.K,
                "mse": f.mse,
                "largest": f.largest,
                "spikes": f.spikes,
            }
            for f in fits
        ]
    }
    last = max((f for f in fits if f.range == fits[0].range), key=lambda f: f.table.K)
    made = {"approximation": drawn.approximation(last), "raster": drawn.raster(last)}
    if len(fits) > 1:
        made["error"] = drawn.errors(fits)
    if activation == "relu":
        codes = drawn.codes()
        made["codes"] = drawn.error_against_steps(codes)
        written["codes"] = [
            {"code": code, "steps": steps, "rms_error": error, "spikes": count}
            for code, points in codes.items()
            for steps, error, count in points
            if code == "few spikes" or (steps & (steps + 1)) == 0
        ]  # rate: at 2^k - 1
    tables.write(written, folder / "tables")
    figures.write(made, folder / "figures")
    for name in (f"{activation}.yaml", "tables", "figures"):
        tracker.artifact(folder / name)
    _print(fits)
    result: Metrics = {}
    for one in fits:
        found = {"mse": one.mse, "largest": one.largest, "spikes": one.spikes}
        where = "" if one.range == fits[0].range else f"_{one.range[0]:g}_{one.range[1]:g}"
        tracker.metrics({f"{name}{where}": value for name, value in found.items()}, step=one.table.K)
        result |= {f"{name}{where}_K{one.table.K}": value for name, value in found.items()}
    return result


def _print(fits: list[Fitted]) -> None:
    table = Table(title=f"few-spike neurons for {fits[0].activation}", title_justify="left")
    for name in ("range", "K", "mean squared error", "largest error", "mean spikes"):
        table.add_column(name)
    for one in fits:
        table.add_row(
            f"{one.range[0]:g} to {one.range[1]:g}",
            str(one.table.K),
            f"{one.mse:.3g}",
            f"{one.largest:.3g}",
            f"{one.spikes:.2f}",
        )
    Console(soft_wrap=True).print(table)


def _interval(given: list[float]) -> Interval:
    pair = isinstance(given, list) and len(given) == 2 and all(isinstance(v, int | float) for v in given)
    require(
        pair and given[0] < given[1] and given[1] > 0,
        "range",
        given,
        "two numbers [low, high], low < high and high > 0",
    )
    return float(given[0]), float(given[1])


def _density(distribution: str) -> Density | None:
    """Weights of inputs from a CSV file, linear between its rows; None: uniform."""
    if distribution == "uniform":
        return None
    try:
        with Path(distribution).expanduser().open(newline="") as file:
            rows = sorted((float(row["x"]), float(row["weight"])) for row in csv.DictReader(file))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"distribution={distribution} is not allowed: it must be uniform, or a CSV file with columns x "
            f"and weight ({error})"
        ) from error
    if len(rows) < 2 or min(weight for _, weight in rows) < 0 or not sum(weight for _, weight in rows) > 0:
        raise UserError(f"distribution={distribution}: it needs two rows or more, with weights of at least 0")
    x, weight = (torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True))

    def density(at: Tensor) -> Tensor:
        right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
        share = ((at - x[right - 1]) / (x[right] - x[right - 1]).clamp(min=1e-12)).clamp(0, 1)
        between = weight[right - 1] + share * (weight[right] - weight[right - 1])
        inside = (at >= x[0]) & (at <= x[-1])
        floor = 1e-6 * weight.max()  # nowhere nothing at all
        return torch.where(inside, between, floor).clamp(min=float(floor))

    return density
