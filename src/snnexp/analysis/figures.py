"""Figures of trained networks and of surrogates, as matplotlib `Figure` objects (no global state, no display)."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from snnexp.analysis.style import BLUE, GREY, ORANGE, PURPLE, panels, whole
from snnexp.surrogate import curve

CUT = 2.2  # height of the panels that compare surrogates
CHOSEN = 3  # neurons of each site
ARROW = {"arrowstyle": "->", "color": ORANGE}


def surrogate(function: nn.Module) -> Figure:
    """Draw the forward step, the primitive (if there is one) and the derivative used backward, over x = v - theta."""
    figure, (axes,) = panels(1, 1, 6, 3.6)
    _draw(axes, function)
    name, settings = type(function).__name__, function.extra_repr().split(", spiking")[0]
    axes.set(xlabel="x = v − θ", ylabel="value", title=f"{name} ({settings})")
    axes.legend(frameon=False)
    return figure


def surrogates(functions: Sequence[tuple[str, nn.Module]]) -> Figure:
    """Draw each function in a panel of its own, as figure 1 of the lab sheet."""
    figure, axes_all = panels(len(functions), 3, 3.6, 2.9, sharex=True)
    for axes, (name, function) in zip(axes_all, functions, strict=True):
        steepest = _draw(axes, function)
        axes.set(title=name, xlabel="x = v − θ", ylim=(-0.05, max(1.05, min(CUT, 1.05 * steepest))))
        if 1.05 * steepest > CUT:
            note = f"g'(x) is cut here:\nit rises to {steepest:.3g}"
            axes.annotate(note, (0, CUT), (0.45, CUT - 0.1), va="top", size=8, color=ORANGE, arrowprops=ARROW)
    figure.supylabel("value")
    figure.legend(*axes_all[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def _draw(axes: Axes, function: nn.Module) -> float:
    """Draw a surrogate's curves on |x| <= 2 and return the largest value of its derivative."""
    x = torch.linspace(-2, 2, 801, dtype=torch.float64)
    forward, primitive, derivative = curve(function, x)
    axes.plot(x.numpy(), forward.numpy(), color=GREY, label="forward: Heaviside")
    if primitive is not None:
        axes.plot(x.numpy(), primitive.numpy(), color=BLUE, label="primitive g(x)")
    axes.plot(x.numpy(), derivative.numpy(), color=ORANGE, label="backward: g'(x)")
    return float(derivative.max())


def rasters(x: Tensor, trains: Mapping[str, Tensor], label: str) -> Figure:
    """Draw one example: its input, where that is events [T, C, H, W], and each site's spikes [T, neurons]."""
    rows: dict[str, Tensor] = {"input": x.flatten(1)} if x.dim() == 4 else {}
    rows |= {name: train.flatten(1) for name, train in trains.items()}
    figure, axes_all = panels(len(rows), 1, 7, 2.3, sharex=True)
    for axes, (name, train) in zip(axes_all, rows.items(), strict=True):
        step, neuron = train.numpy().nonzero()
        count = train.shape[1]
        few = count <= 32
        axes.hlines(neuron, step + 0.6, step + 1.4, color=BLUE, linewidth=3.0 if few else 0.7)  # as long as its step
        axes.set(ylim=(-0.5 - 0.02 * count, 1.02 * count - 0.5), xlim=(0.5, len(train) + 0.5))
        axes.set_ylabel(f"{name}\n({count} {'pixels × polarity' if name == 'input' else 'neurons'})")
        if few:
            axes.set_yticks(range(count))
    axes_all[-1].set(xlabel="time step")
    whole(axes_all[-1].xaxis)
    figure.suptitle(
        f"spikes of one test recording: {label}" if "input" in rows else f"spikes of one test image: {label}"
    )
    return figure


def learning(history: Sequence[Mapping[str, float]], best: int) -> Figure:
    """Draw loss and accuracy of training and validation by epoch; a line marks the `best` one, counted from 1."""
    figure, axes_all = panels(2, 2, 4.4, 3.2)
    epochs = range(1, len(history) + 1)
    for axes, what in zip(axes_all, ("loss", "accuracy"), strict=True):
        for split, color in (("train", GREY), ("val", BLUE)):
            values = [metrics[f"{split}/{what}"] for metrics in history]
            label = {"train": "training", "val": "validation"}[split]
            axes.plot(epochs, values, color=color, marker="o", markersize=3, label=label)
        axes.axvline(best, color=ORANGE, linestyle="--", linewidth=1, label=f"best epoch: {best}")
        axes.set(xlabel="epoch", ylabel=what)
        whole(axes.xaxis)
    figure.legend(*axes_all[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def accuracy_at_t(val: Sequence[float], test: Sequence[float]) -> Figure:
    """Draw the accuracy of the output averaged over the first t steps, for t = 1, 2, ..."""
    figure, (axes,) = panels(1, 1, 6, 3.4)
    steps = range(1, len(val) + 1)
    axes.plot(steps, val, color=GREY, marker="o", markersize=3, label="validation")
    axes.plot(steps, test, color=BLUE, marker="o", markersize=3, label="test")
    axes.set(xlabel="time steps t", ylabel="accuracy of the first t steps")
    whole(axes.xaxis)
    axes.legend(frameon=False, loc="lower right")
    return figure


def potentials(sites: Mapping[str, tuple[Tensor, Tensor, float]]) -> Figure:
    """Draw membrane potentials over time with spikes and threshold, of the neurons of each site whose number of spikes
    is closest to one in two steps: those that always or never fire show little.

    `sites`: v_temp [T, neurons], the potential that is compared with the threshold, the spikes [T, neurons], and the
    threshold.
    """
    figure, axes_all = panels(len(sites), 1, 7, 2.5, sharex=True)
    for axes, (name, (v, spikes, threshold)) in zip(axes_all, sites.items(), strict=True):
        chosen = (spikes.sum(0) - len(v) / 2).abs().argsort(stable=True)[:CHOSEN].tolist()
        steps = torch.arange(1, len(v) + 1)
        for neuron, color in zip(chosen, (BLUE, ORANGE, PURPLE), strict=False):
            fired = spikes[:, neuron] > 0
            axes.plot(steps, v[:, neuron], color=color, linewidth=1.2, label=f"neuron {neuron}")
            axes.plot(steps[fired], v[fired, neuron], "o", color=color, markersize=5)
        axes.axhline(threshold, color=GREY, linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
        axes.set(ylabel=f"{name}\npotential")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes_all[-1].set(xlabel="time step")
    whole(axes_all[-1].xaxis)
    figure.suptitle("potential before the reset; a dot is a spike", fontsize=10)
    return figure


def rates(values: Mapping[str, float], unit: str) -> Figure:
    """Draw a bar for each site: its mean output per neuron and step."""
    figure, (axes,) = panels(1, 1, 6, 0.9 + 0.5 * len(values))
    bars = axes.barh(list(values), list(values.values()), color=BLUE, height=0.6)
    axes.bar_label(bars, fmt=" %.3f")
    axes.invert_yaxis()
    axes.set(xlabel=unit, title="activity per layer")
    axes.margins(x=0.15)
    return figure


def confusion(counts: Tensor, classes: Sequence[str]) -> Figure:
    """Draw counts [true, predicted] as a heat map, with numbers for up to 20 classes."""
    k = len(classes)
    size = min(9.0, 2.2 + 0.42 * k)
    figure, (axes,) = panels(1, 1, size + 0.6, size, framed=True)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    if k <= 20:
        for i, j in counts.nonzero().tolist():
            color = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, str(int(counts[i, j])), ha="center", va="center", size=8, color=color)
        axes.set_xticks(range(k), classes, rotation=0 if k <= 10 and max(map(len, classes)) <= 3 else 90)
        axes.set_yticks(range(k), classes)
    axes.set(xlabel="predicted", ylabel="true", title="confusion on the test split")
    return figure
