"""Figures as matplotlib `Figure` objects (no global state, no display); `write` puts them into a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from snnexp.surrogate import curve

if TYPE_CHECKING:
    from snnexp.conversion.measure import LayerError

BLUE, ORANGE, GREY = "#2a6f97", "#e07a1f", "#8a8a8a"


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
    _plain(axes)
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
        _plain(axes)
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
    _plain(axes)
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
    _plain(axes)
    return figure


def ways(table: Sequence[Mapping[str, Any]]) -> Figure:
    """Ways to train a network for event recordings (`task=dvs`): accuracy against steps, and what training took."""
    names = list(dict.fromkeys(row["way"] for row in table))
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    accuracy, cost = figure.subplots(1, 2, width_ratios=(2, 1))
    for name, color in zip(names, (ORANGE, BLUE, "#8ab6d6", "#7a4f9a"), strict=True):
        snn = [row for row in table if row["way"] == name and row["network"] == "SNN"]
        accuracy.errorbar([r["steps"] for r in snn], [r["accuracy"] for r in snn], [r["sd"] for r in snn], fmt="o-",
                          color=color, capsize=3, label=f"{name}: SNN")
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
        _plain(axes)
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
    kinds = {"unevenness": ORANGE, "quantisation": BLUE, "clipping": GREY, "propagated": "#7a4f9a"}
    for kind, color in kinds.items():
        parts.plot([getattr(layer, kind) / max(layer.ann_mean, 1e-12) ** 2 for layer in table], names, "o", color=color,
                   label=kind, markersize=4)
    parts.set(xlabel="mean squared error / (mean ANN activation)²")
    for axes in (means, rates_axes, parts):
        axes.legend(frameon=False, fontsize=8)
        _plain(axes)
    means.invert_yaxis()
    figure.suptitle(f"layers after T = {table[0].T} steps")
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
