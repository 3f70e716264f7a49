"""Figures as matplotlib `Figure` objects (no global state, no display); `write` puts them into a folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from snnexp.surrogate import curve
from snnexp.surrogate.dspike import Dspike

if TYPE_CHECKING:
    from snnexp.analysis.tables import Rows
    from snnexp.analysis.unevenness import Orders
    from snnexp.conversion.measure import LayerError

BLUE, ORANGE, GREY, PURPLE, GREEN, BLACK = "#2a6f97", "#e07a1f", "#8a8a8a", "#7a4f9a", "#4f8f4f", "#222222"
CYCLE = (BLUE, ORANGE, PURPLE, "#3a8f5c", "#b5333c", GREY)


def write(figures: Mapping[str, Figure], folder: Path) -> None:
    """Save each figure as `<folder>/<name>.png`."""
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)


def surrogate(function: nn.Module) -> Figure:
    """Forward (Heaviside), primitive (where there is one) and the derivative used backward, against x = v - theta."""
    x = torch.linspace(-2, 2, 801, dtype=torch.float64)
    forward, primitive, derivative = curve(function, x)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(x.numpy(), forward.numpy(), color=GREY, label="forward: Heaviside")
    if primitive is not None:
        axes.plot(x.numpy(), primitive.numpy(), color=BLUE, label="primitive g(x)")
    axes.plot(
        x.numpy(), derivative.numpy(), color=ORANGE, label="backward: g'(x)" if primitive is not None else "backward"
    )
    axes.set(xlabel="x = v − θ", title=f"{type(function).__name__} ({function.extra_repr().split(', spiking')[0]})")
    axes.legend(frameon=False)
    plain(axes)
    return figure


def surrogates(functions: Sequence[tuple[str, nn.Module]]) -> Figure:
    """Forward, primitive and derivative of each, a panel each, as figure 1 of the lab sheet."""
    x = torch.linspace(-2, 2, 801, dtype=torch.float64)
    columns = min(3, len(functions))
    lines = -(-len(functions) // columns)
    figure = Figure(figsize=(3.6 * columns, 0.5 + 2.7 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for axes, (name, function) in zip(panels.flat, functions, strict=False):
        forward, primitive, derivative = curve(function, x)
        axes.plot(x.numpy(), forward.numpy(), color=GREY, label="forward: Heaviside")
        if primitive is not None:
            axes.plot(x.numpy(), primitive.numpy(), color=BLUE, label="primitive g(x)")
        axes.plot(x.numpy(), derivative.numpy(), color=ORANGE, label="backward: g'(x)")
        axes.set(title=name, ylim=(-0.05, max(1.05, min(2.2, 1.05 * float(derivative.max())))))
        plain(axes)
    for axes in list(panels.flat)[len(functions) :]:
        axes.axis("off")
    for axes in panels[-1]:
        axes.set_xlabel("x = v − θ")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def learning(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Validation accuracy by epoch, a line each."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    for i, (name, values) in enumerate(curves.items()):
        axes.plot(
            range(1, len(values) + 1),
            values,
            marker="o",
            markersize=3,
            color=CYCLE[i % len(CYCLE)],
            linestyle="-" if i < len(CYCLE) else "--",
            label=name,
        )
    axes.set(xlabel="epoch", ylabel="validation accuracy", title="learning, mean over seeds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    plain(axes)
    return figure


def accuracy_against_parameter(points: Mapping[str, Sequence[tuple[float, Sequence[float]]]]) -> Figure:
    """A panel per surrogate: test accuracy of every run against the parameter's value, and the line of means with one
    standard deviation."""
    columns = min(4, len(points))
    lines = -(-len(points) // columns)
    figure = Figure(figsize=(2.8 * columns, 2.5 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, (name, of_values) in zip(panels.flat, points.items(), strict=False):
        values = [value for value, _ in of_values]
        for value, runs in of_values:
            axes.plot([value] * len(runs), runs, "o", color=GREY, markersize=3.5, alpha=0.7, markeredgewidth=0)
        means = [torch.tensor(runs).mean().item() for _, runs in of_values]
        spread = [torch.tensor(runs).std().item() if len(runs) > 1 else 0.0 for _, runs in of_values]
        axes.errorbar(values, means, spread, color=BLUE, marker="o", markersize=4, capsize=3)
        axes.set(title=name, xscale="log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        plain(axes)
    for axes in list(panels.flat)[len(points) :]:
        axes.axis("off")
    for line in panels:
        line[0].set_ylabel("test accuracy")
    figure.suptitle("every run (grey), mean and standard deviation over seeds (blue)", fontsize=10)
    return figure


def zeros_by_width(sparsity: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]]) -> Figure:
    """Of surrogates by their parameter: zero shares after the last epoch by layer, in the first layer by epoch, and the
    accuracy. Rows as task=compare_surrogates makes them."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    last, over_time, accuracy = figure.subplots(1, 3)
    functions = list(dict.fromkeys(row["surrogate"] for row in settings))
    epochs = max(row["epoch"] for row in sparsity)
    layers = list(dict.fromkeys(row["layer"] for row in sparsity if not math.isnan(row["potentials"])))
    # where hardly anything is zero, it is by underflow
    sparse = [f for f in functions if any(row["surrogate"] == f and row["potentials"] > 0.05 for row in sparsity)]
    for function in sparse:
        for i, layer in enumerate(layers):
            rows = [r for r in sparsity if (r["surrogate"], r["layer"], r["epoch"]) == (function, layer, epochs)]
            last.plot(
                [r["value"] for r in rows],
                [r["potentials"] for r in rows],
                "o-",
                markersize=4,
                color=CYCLE[i % len(CYCLE)],
                label=f"{layer}: potentials",
            )
        total = [r for r in sparsity if (r["surrogate"], r["layer"], r["epoch"]) == (function, "all", epochs)]
        last.plot(
            [r["value"] for r in total],
            [r["skippable"] for r in total],
            "s--",
            markersize=4,
            color=GREY,
            label="backward work",
        )
        values = list(dict.fromkeys(r["value"] for r in sparsity if r["surrogate"] == function))
        for i, value in enumerate(values):
            rows = [r for r in sparsity if (r["surrogate"], r["layer"], r["value"]) == (function, layers[0], value)]
            over_time.plot(
                [r["epoch"] for r in rows],
                [r["potentials"] for r in rows],
                color=CYCLE[i % len(CYCLE)],
                label=f"{value:g}",
            )
    for axes, values in (
        (last, [r["value"] for r in sparsity if r["surrogate"] in sparse]),
        (accuracy, [round(row["peak"], 3) for row in settings]),
    ):
        axes.set_xscale("log")
        axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
        axes.minorticks_off()
    over_time.xaxis.set_major_locator(MaxNLocator(integer=True))
    last.set(xlabel=f"alpha of {', '.join(sparse)}", ylabel="share exactly zero", title="last epoch")
    over_time.set(xlabel="epoch", title=f"potentials of {layers[0]}, by alpha", ylim=(0, 1.3))
    for i, function in enumerate(functions):
        of_it = [row for row in settings if row["surrogate"] == function]
        accuracy.errorbar(
            [r["peak"] for r in of_it],
            [r["test/accuracy"] for r in of_it],
            [r["test/accuracy sd"] for r in of_it],
            marker="o",
            markersize=4,
            capsize=3,
            label=function,
            color=CYCLE[i % len(CYCLE)],
        )
    accuracy.set(xlabel="peak of g'", ylabel="test accuracy", title="accuracy at equal peak")
    for axes in (last, over_time, accuracy):
        axes.legend(
            frameon=False,
            fontsize=7,
            ncols=3 if axes is over_time else 1,
            loc="upper center" if axes is over_time else "best",
        )
        plain(axes)
    return figure


def temperature(history: Sequence[Mapping[str, float]]) -> Figure:
    """Adaptive Dspike: the temperature b by epoch, and the surrogate's derivative at start, middle and end."""
    curves = {key: [m[key] for m in history] for key in history[0] if key.startswith("train/b")}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    over_time, shapes = figure.subplots(1, 2, width_ratios=[1.3, 1])
    epochs = range(1, len(history) + 1)
    for i, (key, values) in enumerate(curves.items()):
        over_time.plot(
            epochs,
            values,
            "o-",
            markersize=3,
            color=CYCLE[i % len(CYCLE)],
            label=key.removeprefix("train/b").strip("/") or "all layers",
        )
    over_time.set(xlabel="epoch", ylabel="temperature b", ylim=(0, None))
    over_time.xaxis.set_major_locator(MaxNLocator(integer=True))
    over_time.legend(frameon=False)
    x = torch.linspace(-1, 1, 801, dtype=torch.float64)
    first = next(iter(curves.values()))
    for epoch, color in zip(dict.fromkeys((1, (1 + len(first)) // 2, len(first))), (GREY, BLUE, ORANGE), strict=False):
        b = first[epoch - 1]
        shapes.plot(x.numpy(), Dspike(b).derivative(x).numpy(), color=color, label=f"epoch {epoch}: b = {b:.3g}")
    shapes.set(xlabel="x = v − θ", title="g'(x)" if len(curves) == 1 else f"g'(x) of {next(iter(curves))[8:]}")
    shapes.legend(frameon=False, fontsize=8)
    for axes in (over_time, shapes):
        plain(axes)
    return figure


def by_layer(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str) -> Figure:
    """A panel per column: its value against the epoch, a line per layer. `rows` have epoch, layer and columns."""
    figure = Figure(figsize=(3.4 * len(columns), 3.2), layout="constrained")
    for axes, column in zip(figure.subplots(1, len(columns), squeeze=False).flat, columns, strict=True):
        for i, layer in enumerate(dict.fromkeys(row["layer"] for row in rows)):
            of_layer = [row for row in rows if row["layer"] == layer and not math.isnan(row[column])]
            if of_layer:
                axes.plot(
                    [row["epoch"] for row in of_layer],
                    [row[column] for row in of_layer],
                    "o-",
                    markersize=3,
                    color=CYCLE[i % len(CYCLE)],
                    label=layer,
                )
        axes.set(xlabel="epoch", title=column, ylim=(min(0, axes.get_ylim()[0]), None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8)
        plain(axes)
    figure.suptitle(title)
    return figure


def rasters(x: Tensor, trains: Mapping[str, Tensor], label: str) -> Figure:
    """One example through the network: its input [T, C, H, W] or [C, H, W] and each site's spikes [T, neurons]."""
    rows: dict[str, Tensor] = {"input": x.flatten(1)} if x.dim() == 4 else {}
    rows |= {name: train.flatten(1) for name, train in trains.items()}
    figure = Figure(figsize=(7, 2.3 * len(rows)), layout="constrained")
    for axes, (name, train) in zip(
        figure.subplots(len(rows), 1, sharex=True, squeeze=False).flat, rows.items(), strict=True
    ):
        step, neuron = train.numpy().nonzero()
        few = train.shape[1] <= 32
        axes.hlines(neuron, step + 0.6, step + 1.4, color=BLUE, linewidth=3.0 if few else 0.7)  # as long as its step
        axes.set(
            ylabel=f"{name}\n({train.shape[1]} {'pixels × polarity' if name == 'input' else 'neurons'})",
            ylim=(-0.5 - 0.02 * train.shape[1], 1.02 * train.shape[1] - 0.5),
            xlim=(0.5, len(train) + 0.5),
        )
        if few:
            axes.set_yticks(range(train.shape[1]))
        plain(axes)
    axes.set(xlabel="time step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"spikes of one test example ({label})")
    return figure


def rates(values: Mapping[str, float], unit: str) -> Figure:
    """One bar per site: its mean output per neuron and step."""
    figure = Figure(figsize=(6, 0.9 + 0.5 * len(values)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(values), list(values.values()), color=BLUE, height=0.6)
    axes.bar_label(bars, fmt=" %.3f")
    axes.invert_yaxis()
    axes.set(xlabel=unit, title="activity per layer")
    axes.margins(x=0.15)
    plain(axes)
    return figure


def confusion(counts: Tensor, classes: Sequence[str]) -> Figure:
    """Counts [true, predicted] as a heat map, with the numbers where they can be read."""
    k = len(classes)
    size = min(9.0, 2.2 + 0.42 * k)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow((counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    if k <= 20:
        for i in range(k):
            for j in range(k):
                if counts[i, j]:
                    dark = counts[i, j] > 0.5 * counts[i].sum()
                    axes.text(
                        j,
                        i,
                        str(int(counts[i, j])),
                        ha="center",
                        va="center",
                        size=8,
                        color="white" if dark else "black",
                    )
        axes.set_xticks(range(k), classes, rotation=0 if k <= 10 and max(map(len, classes)) <= 3 else 90)
        axes.set_yticks(range(k), classes)
    axes.set(xlabel="predicted", ylabel="true", title="confusion on the test split")
    return figure


def accuracy_against_t(curves: Mapping[str, Mapping[int, float]], ann: float) -> Figure:
    """Accuracy against latency: a line per curve {T: accuracy}, and the ANN's as a level."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(ann, color=GREY, linestyle="--", label="ANN")
    for (label, curve_t), color in zip(curves.items(), (ORANGE, BLUE)[-len(curves) :], strict=True):
        axes.plot(list(curve_t), list(curve_t.values()), "o-", color=color, label=label)
    axes.set_xscale("log", base=2)
    steps = sorted({t for curve_t in curves.values() for t in curve_t})
    axes.set_xticks(steps, [str(t) for t in steps])
    axes.set(xlabel="time steps T", ylabel="test accuracy")
    axes.legend(frameon=False)
    plain(axes)
    return figure


def ways(table: Sequence[Mapping[str, Any]]) -> Figure:
    """Ways to train a network for event recordings (`task=dvs`): accuracy against steps, and what training took."""
    names = list(dict.fromkeys(row["way"] for row in table))
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    accuracy, cost = figure.subplots(1, 2, width_ratios=(2, 1))
    for name, color in zip(names, (ORANGE, BLUE, "#8ab6d6", "#7a4f9a"), strict=True):
        snn = [row for row in table if row["way"] == name and row["network"] == "SNN"]
        accuracy.errorbar(
            [r["steps"] for r in snn],
            [r["accuracy"] for r in snn],
            [r["sd"] for r in snn],
            fmt="o-",
            color=color,
            capsize=3,
            label=f"{name}: SNN",
        )
        for row in table:
            if row["way"] == name and row["network"] == "ANN":
                accuracy.axhline(row["accuracy"], color=color, linestyle="--", label=f"{name}: ANN")
        if "no reset" not in name:  # its weights are those of another way
            cost.bar_label(cost.barh(name, snn[0]["train_s"], color=color, height=0.6), fmt=" %.0f")
    steps = sorted({row["steps"] for row in table if row["network"] == "SNN"})
    accuracy.set_xscale("log", base=2)
    accuracy.set_xticks(steps, [str(t) for t in steps])
    accuracy.minorticks_off()
    accuracy.set(xlabel="time steps for one recording", ylabel="test accuracy (mean, s.d. over seeds)")
    accuracy.legend(frameon=False, fontsize=8)
    cost.invert_yaxis()
    cost.margins(x=0.15)
    cost.set(xlabel="processor time of one training, s")
    for axes in (accuracy, cost):
        plain(axes)
    return figure


def layers(table: Sequence[LayerError]) -> Figure:
    """By layer: mean activation of ANN and SNN, firing rate and silent share, and the parts of the squared error."""
    names = [layer.layer for layer in table]
    figure = Figure(figsize=(11, 1.6 + 0.28 * len(table)), layout="constrained")
    means, rates_axes, parts = figure.subplots(1, 3, sharey=True)
    means.plot([layer.ann_mean for layer in table], names, "o", color=GREY, label="ANN")
    means.plot([layer.snn_mean for layer in table], names, "x", color=BLUE, label="SNN")
    means.set(xlabel="mean activation")
    rates_axes.plot([layer.firing_rate for layer in table], names, "o", color=BLUE, label="firing rate")
    rates_axes.plot([layer.silent for layer in table], names, "o", color=ORANGE, label="silent neurons")
    rates_axes.set(xlabel="share")
    kinds = {"unevenness": ORANGE, "quantisation": BLUE, "clipping": GREY, "propagated": PURPLE}
    for kind, color in kinds.items():
        parts.plot(
            [getattr(layer, kind) / max(layer.ann_mean, 1e-12) ** 2 for layer in table],
            names,
            "o",
            color=color,
            label=kind,
            markersize=4,
        )
    parts.set(xlabel="mean squared error / (mean ANN activation)²")
    for axes in (means, rates_axes, parts):
        axes.legend(frameon=False, fontsize=8)
        plain(axes)
    means.invert_yaxis()
    figure.suptitle(f"layers after T = {table[0].T} steps")
    return figure


def dynamics(rows: Rows) -> Figure:
    """By layer, a line for each T: how far the two sides of the relation are apart, and its last term, over all neurons
    and over those that end in [0, θ)."""
    figure = Figure(figsize=(11, 1.6 + 0.26 * len(_column(rows, "layer"))), layout="constrained")
    residual, remainder, inside = figure.subplots(1, 3, sharey=True)
    steps = _column(rows, "T")
    for T, color in zip(steps, _shades(len(steps)), strict=True):
        at = [row for row in rows if row["T"] == T]
        names = [row["layer"] for row in at]
        residual.plot([max(row["residual"], 1e-17) for row in at], names, ".-", color=color, linewidth=0.8)
        remainder.plot([row["remainder"] for row in at], names, ".-", color=color, linewidth=0.8, label=f"T = {T}")
        inside.plot([row["inside"] for row in at], names, ".-", color=color, linewidth=0.8)
    residual.set(xscale="log", xlabel="largest difference of the two sides / θ")
    remainder.set(xscale="log", xlabel="(v(T) − v(0)) / (T θ), rms, all neurons")
    inside.set(xscale="log", xlabel="the same, neurons with v(T) in [0, θ)")
    residual.invert_yaxis()
    figure.legend(*remainder.get_legend_handles_labels(), loc="outside right center", frameon=False)
    for axes in (residual, remainder, inside):
        plain(axes)
    return figure


def orders(found: Sequence[Orders]) -> Figure:
    """Small neurons: the share of the orders of their spikes (log) that give each error, a panel for each neuron."""
    panels: dict[str, dict[int, dict[int, float]]] = {}
    for each in found:
        row = each.row()
        title = f"weights {row['weights']}\nθ = {row['theta']:g}, v(0) = {row['start']:g} θ"
        panels.setdefault(title, {})[each.neuron.T] = each.share
    columns = min(5, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.7 * lines), layout="constrained")
    axes_all = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in axes_all.flat[len(panels) :]:
        axes.remove()
    for axes, (title, shares) in zip(axes_all.flat, panels.items(), strict=False):
        for T, color in zip(shares, _shades(len(shares)), strict=True):
            errors = sorted(shares[T])
            axes.plot(errors, [shares[T][e] for e in errors], "o-", color=color, markersize=3, label=f"T = {T}")
        axes.axvline(0, color=GREY, linewidth=0.6)
        axes.set_yscale("log")
        axes.set_title(title, size=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axes)
    axes_all[0, 0].legend(frameon=False, fontsize=8)
    figure.supxlabel("spikes too many (above 0: over-firing, below: under-firing)")
    figure.supylabel("share of all orders")
    return figure


def kinds(rows: Rows) -> Figure:
    """By layer, a panel for each T: shares of the neurons whose residual lies outside [0, θ), by what follows."""
    steps, names = _column(rows, "T"), _column(rows, "layer")
    figure = Figure(figsize=(2.2 + 1.9 * len(steps), 1.8 + 0.24 * len(names)), layout="constrained")
    colors = {"over": ORANGE, "under": BLUE, "zeros": "#d9d9d9", "saturated": GREY}
    labels = {
        "over": "over-firing",
        "under": "under-firing",
        "zeros": "outside, correct zero",
        "saturated": "outside, correctly saturated",
    }
    panels = figure.subplots(1, len(steps), sharey=True, squeeze=False)[0]
    for axes, T in zip(panels, steps, strict=True):
        at, left = [row for row in rows if row["T"] == T], [0.0] * len(names)
        for kind, color in colors.items():
            axes.barh(names, [row[kind] for row in at], left=left, color=color, label=labels[kind])
            left = [a + row[kind] for a, row in zip(left, at, strict=True)]
        axes.set(title=f"T = {T}", xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
        plain(axes)
    panels[0].invert_yaxis()
    figure.supxlabel("share of neurons (the rest ends in [0, θ))")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def arrivals(rows: Rows) -> Figure:
    """By layer, at the largest T: the unevenness error when the same spikes arrive in other orders, and how far the
    input current swings."""
    T = max(row["T"] for row in rows)
    at = [row for row in rows if row["T"] == T]
    figure = Figure(figsize=(10, 1.6 + 0.26 * len(_column(at, "layer"))), layout="constrained")
    uneven, swing, trend = figure.subplots(1, 3, sharey=True)
    names = _column(at, "arrival")
    for name, color in zip(names, (BLACK, BLUE, ORANGE, GREEN, GREY), strict=True):
        of = [row for row in at if row["arrival"] == name]
        layers_ = [row["layer"] for row in of]
        for axes, key in ((uneven, "uneven"), (swing, "swing"), (trend, "trend")):
            axes.plot([row[key] for row in of], layers_, ".-", color=color, label=name, linewidth=0.8)
    uneven.set(xlabel="unevenness error, spikes (rms)")
    swing.set(xlabel="swing of the current over time / θ")
    trend.set(xlabel="later less earlier current / θ (rms)")
    uneven.invert_yaxis()
    uneven.legend(title="spikes arrive", frameon=False, fontsize=8)
    for axes in (uneven, swing, trend):
        axes.set_xlim(left=0)
        plain(axes)
    figure.suptitle(f"the same spikes in other orders, T = {T}")
    return figure


def mitigations(rows: Rows, ann: float) -> Figure:
    """Test accuracy against the steps for which each neuron works, against latency, and against energy."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes_all = figure.subplots(1, 3, sharey=True)
    keys = {"steps": "steps a neuron works", "latency": "steps until the answer", "energy_nj": "energy, µJ"}
    names = _column(rows, "mitigation")
    for name, marker, color in zip(
        names, "osv^DPX*", (BLACK, BLUE, PURPLE, ORANGE, "#b5402a", GREY, GREEN, BLUE), strict=False
    ):
        of = [row for row in rows if row["mitigation"] == name]
        for axes, key in zip(axes_all, keys, strict=True):
            unit = 1e-3 if key == "energy_nj" else 1
            axes.plot(
                [row[key] * unit for row in of],
                [row["test_accuracy"] for row in of],
                marker=marker,
                color=color,
                label=name.replace("_", " "),
                linewidth=0.8,
                markersize=5,
            )
    for axes, (key, label) in zip(axes_all, keys.items(), strict=True):
        axes.axhline(ann, color=GREY, linestyle="--", label="ANN")
        axes.set(xlabel=label)
        if key != "energy_nj":
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        plain(axes)
    axes_all[0].set(ylabel="test accuracy")
    figure.legend(*axes_all[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure


def _column(rows: Rows, key: str) -> list[Any]:
    """The different values of a column, in order."""
    return list(dict.fromkeys(row[key] for row in rows))


def _shades(n: int) -> list[Any]:
    """`n` colours from light to dark."""
    return [tuple(v) for v in colormaps["viridis_r"](torch.linspace(0.1, 1, n).numpy())]


def plain(*axes: Axes) -> None:
    """Without a frame above and on the right."""
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
