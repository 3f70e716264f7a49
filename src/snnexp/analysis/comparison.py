"""Compare surrogates by the runs of a sweep: settings, tables and figures (the lab's part I)."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import nn

from snnexp.analysis.style import BLUE, GREY, distinct, panels, styles, whole
from snnexp.surrogate import curve
from snnexp.training import Metrics

Row = dict[str, Any]
VAL = "val/accuracy"
MEASURED = ("potentials", "currents", "weights", "rate", "skippable")  # by task=gradient_sparsity
SPEED = 0.95  # an epoch's accuracy counts as learnt at this share of the best setting's


@dataclass(frozen=True)
class Setting:
    """A surrogate at one value of its first parameter, and its runs by seed: final metrics, and metrics by epoch."""

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
        """The mean validation accuracy over seeds by epoch."""
        return [statistics.fmean(m[VAL] for m in epoch) for epoch in zip(*self.histories, strict=False)]

    def epochs_to(self, level: float) -> float:
        """Return the first epoch whose mean validation accuracy reaches `level`; nan if none does."""
        return next((float(epoch) for epoch, value in enumerate(self.learning, 1) if value >= level), math.nan)

    @cached_property
    def shape(self) -> dict[str, float]:
        """The peak of g', its area on |x| <= 2, and the width in which it is at least a hundredth of the peak (at most
        8, which covers all potentials).
        """
        x = torch.linspace(-4, 4, 8001, dtype=torch.float64)
        slope = curve(self.surrogate, x).derivative
        near, peak = x.abs() <= 2, float(slope.max())
        support = float((slope >= 0.01 * peak).double().mean()) * 8
        return {"peak": peak, "area": float(torch.trapezoid(slope[near], x[near])), "support": support}


def best_of_each(settings: Sequence[Setting]) -> list[Setting]:
    """Return each function's setting with the best mean validation accuracy, best function first."""
    best: dict[str, Setting] = {}
    for setting in sorted(settings, key=lambda s: -s.mean(VAL)):
        best.setdefault(setting.function, setting)
    return list(best.values())


def points(settings: Sequence[Setting]) -> dict[str, list[tuple[float, list[float]]]]:
    """Return {function: [(value, test accuracies)]}."""
    points: dict[str, list[tuple[float, list[float]]]] = {}
    for s in settings:
        points.setdefault(f"{s.function} ({s.parameter})", []).append((s.value, s.each("test/accuracy")))
    return points


def settings_table(settings: Sequence[Setting]) -> list[Row]:
    level, rows = SPEED * max(s.mean(VAL) for s in settings), []
    for s in settings:
        row: Row = {"surrogate": s.function, "parameter": s.parameter, "value": s.value, "seeds": len(s.results)}
        for metric in (VAL, "test/accuracy"):
            row |= {metric: statistics.fmean(s.each(metric)), f"{metric} sd": _sd(s.each(metric))}
        cost = {f"epochs to {level:.3f}": s.epochs_to(level), "spikes per sample": s.mean("test/spikes_per_sample")}
        rows.append(row | cost | s.shape)
    return rows


def ranking(settings: Sequence[Setting], best: Sequence[Setting]) -> list[Row]:
    """Rank functions at their best value (by validation), with a 95 % confidence interval of the mean test accuracy.

    The standard deviation is pooled over all settings that learnt, since a few seeds cannot estimate their own."""
    learnt = [s.each("test/accuracy") for s in settings if s.mean(VAL) > 0.5 * best[0].mean(VAL) and len(s.results) > 1]
    freedom = sum(len(values) - 1 for values in learnt)
    pooled = math.sqrt(sum((len(v) - 1) * statistics.variance(v) for v in learnt) / freedom) if freedom else math.nan
    rows = []
    for rank, s in enumerate(best, 1):
        half = float(stats.t.ppf(0.975, freedom)) * pooled / math.sqrt(len(s.results)) if freedom else math.nan
        mean = s.mean("test/accuracy")
        row = {"rank": rank, "surrogate": s.function, "value": s.value, "seeds": len(s.results)}
        rows.append(row | {VAL: s.mean(VAL), "test/accuracy": mean, "low": mean - half, "high": mean + half})
    return rows


def correlation(settings: Sequence[Setting]) -> list[Row]:
    """Return Spearman's rank correlation of the shape with mean accuracy and with speed, over all settings."""
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
                rho, p = map(float, stats.spearmanr(shape, values))
                rows.append({"shape": name, "with": what, "rho": rho, "p": p, "settings": len(settings)})
    return rows


def same_peak(settings: Sequence[Setting]) -> list[Row]:
    """Set settings of equal peak side by side, with the epochs to the accuracy that all of them reach."""
    rows = []
    for peak in sorted({round(s.shape["peak"], 3) for s in settings}):
        members = [s for s in settings if round(s.shape["peak"], 3) == peak]
        if len(members) > 1:
            level = min(max(s.learning) for s in members)
            for s in members:
                row = {"peak": peak, "surrogate": s.name, "equal accuracy": level, "epochs to it": s.epochs_to(level)}
                tested = {"test/accuracy": s.mean("test/accuracy"), "test/accuracy sd": _sd(s.each("test/accuracy"))}
                rows.append(row | tested | {"skippable": s.mean("sparsity/skippable")})
    return rows


def sparsity_rows(settings: Sequence[Setting]) -> list[Row]:
    """Return what task=gradient_sparsity recorded, by setting, epoch and layer, as means over seeds."""
    rows = []
    for s in settings:
        for epoch, metrics in enumerate(zip(*s.histories, strict=False), 1):
            keys = [key for key in metrics[0] if key.startswith("sparsity/")]
            layers: dict[str, dict[str, float]] = {}
            for key in keys:
                _, what, *rest = key.split("/", 2)
                layers.setdefault(rest[0] if rest else "all", {})[what] = statistics.fmean(m[key] for m in metrics)
            for layer, shares in layers.items():
                row = {"surrogate": s.function, "value": s.value, "epoch": epoch, "layer": layer}
                rows.append(row | {what: shares.get(what, math.nan) for what in MEASURED})
    return rows


def _sd(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _or_last(epochs: float) -> float:
    return 1e9 if math.isnan(epochs) else epochs


def learning_figure(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw validation accuracy by epoch, a line for each curve."""
    figure, (axes,) = panels(1, 1, 7, 3.8)
    for (name, values), style in zip(curves.items(), styles(len(curves)), strict=True):
        axes.plot(range(1, len(values) + 1), values, **style, markersize=3, label=name)
    axes.set(xlabel="epoch", ylabel="validation accuracy", title="learning, mean over seeds")
    whole(axes.xaxis)
    axes.legend(frameon=False, fontsize=8)
    return figure


def parameter_figure(points: Mapping[str, Sequence[tuple[float, Sequence[float]]]]) -> Figure:
    """Draw for each surrogate every run's test accuracy against the parameter, and the means with their spread."""
    if all(len(of_values) == 1 for of_values in points.values()):
        return _functions_figure({f"{name} ({of[0][0]:g})": of[0][1] for name, of in points.items()})
    figure, axes_all = panels(len(points), 4, 2.8, 2.5, sharey=True)
    for axes, (name, of_values) in zip(axes_all, points.items(), strict=True):
        values = [value for value, _ in of_values]
        for value, runs in of_values:
            axes.plot([value] * len(runs), runs, "o", color=GREY, markersize=3.5, alpha=0.7, markeredgewidth=0)
        means = [statistics.fmean(runs) for _, runs in of_values]
        spread = [statistics.stdev(runs) if len(runs) > 1 else 0.0 for _, runs in of_values]
        axes.errorbar(values, means, spread, color=BLUE, marker="o", markersize=4, capsize=3)
        axes.set(title=name, xscale="log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    figure.supylabel("test accuracy")
    figure.suptitle("every run (grey), mean and standard deviation over seeds (blue)", fontsize=10)
    return figure


def _functions_figure(runs: Mapping[str, Sequence[float]]) -> Figure:
    """Draw every run's test accuracy and the means with their spread, a line for each function."""
    figure, (axes,) = panels(1, 1, 6.5, 1.2 + 0.4 * len(runs))
    for y, values in enumerate(runs.values()):
        axes.plot(values, [y] * len(values), "o", color=GREY, markersize=3.5, alpha=0.7, markeredgewidth=0)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        axes.errorbar(statistics.fmean(values), y, xerr=spread, color=BLUE, marker="o", markersize=5, capsize=3)
    axes.set_yticks(range(len(runs)), list(runs))
    axes.set(ylim=(len(runs) - 0.5, -0.5), xlabel="test accuracy")
    axes.set_title("every run (grey), mean and standard deviation over seeds (blue)", size=10)
    return figure


def sparsity_figure(sparsity: Sequence[Row], settings: Sequence[Row]) -> Figure:
    """Draw zero shares against the surrogate's parameter after the last epoch, in the first layer by epoch, and
    accuracy against the peak of g'. Rows of `sparsity_rows` and `settings_table`.
    """
    figure, (last, over_time, accuracy) = panels(3, 3, 11 / 3, 3.6)
    epochs = max(row["epoch"] for row in sparsity)
    layers = list(dict.fromkeys(row["layer"] for row in sparsity if not math.isnan(row["potentials"])))
    # a share below 5 % is underflow
    sparse = list(dict.fromkeys(row["surrogate"] for row in sparsity if row["potentials"] > 0.05))
    for function in sparse:
        of_it = [row for row in sparsity if row["surrogate"] == function]
        at_end = [row for row in of_it if row["epoch"] == epochs]
        for layer, style in zip(layers, styles(len(layers)), strict=True):
            rows = [row for row in at_end if row["layer"] == layer]
            x, y = [row["value"] for row in rows], [row["potentials"] for row in rows]
            last.plot(x, y, **style, markersize=4, label=f"{layer}: potentials")
        total = [row for row in at_end if row["layer"] == "all"]
        x, y = [row["value"] for row in total], [row["skippable"] for row in total]
        last.plot(x, y, "s--", markersize=4, color=GREY, label="backward work")
        values = distinct(of_it, "value")
        for value, style in zip(values, styles(len(values)), strict=True):
            rows = [row for row in of_it if row["layer"] == layers[0] and row["value"] == value]
            x, y = [row["epoch"] for row in rows], [row["potentials"] for row in rows]
            over_time.plot(x, y, color=style["color"], label=f"{value:g}")
    functions = distinct(settings, "surrogate")
    for function, style in zip(functions, styles(len(functions)), strict=True):
        rows = [row for row in settings if row["surrogate"] == function]
        x, y, spread = ([row[key] for row in rows] for key in ("peak", "test/accuracy", "test/accuracy sd"))
        accuracy.errorbar(x, y, spread, **style, markersize=4, capsize=3, label=function)
    parameters = {row["value"] for row in sparsity if row["surrogate"] in sparse}
    for axes, ticks in ((last, parameters), (accuracy, {round(row["peak"], 3) for row in settings})):
        axes.set_xscale("log")
        axes.set_xticks(sorted(ticks), [f"{value:g}" for value in sorted(ticks)])
        axes.minorticks_off()
    whole(over_time.xaxis)
    last.set(xlabel=f"alpha of {', '.join(sparse)}", ylabel="share exactly zero", title="last epoch")
    over_time.set(xlabel="epoch", title=f"potentials of {layers[0]}, by alpha", ylim=(0, 1.3))
    accuracy.set(xlabel="peak of g'", ylabel="test accuracy", title="accuracy at equal peak")
    for axes in (last, accuracy):
        axes.legend(frameon=False, fontsize=7)
    over_time.legend(frameon=False, fontsize=7, ncols=3, loc="upper center")
    return figure
