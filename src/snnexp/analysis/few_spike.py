"""Figures of few-spike neurons: approximation, raster, errors against steps and spikes, spike counts in networks."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from snnexp.activations import named
from snnexp.analysis.style import BLUE, GREY, ORANGE, PURPLE, panels, whole
from snnexp.dynamics import if_step
from snnexp.few_spike.table import Fitted, decoded, relu, spikes

COLORS = (BLUE, ORANGE, GREY, PURPLE)
LONGEST = 1023  # steps in which a rate code reaches the resolution of ten few-spike steps


def approximation(fit: Fitted) -> Figure:
    """Draw the function and the neuron's staircase, the error, and the number of spikes, against the input."""
    x = torch.linspace(*fit.range, 20_001, dtype=torch.float64)
    z = torch.stack(list(spikes(x, fit.table)))
    y, f = decoded(x, fit.table), named(fit.activation).function(x)
    figure, (upper, middle, lower) = panels(3, 1, 7, 6.5 / 3, sharex=True, height_ratios=(2.2, 1, 1))
    upper.plot(x.numpy(), f.numpy(), color=GREY, linewidth=1, label=fit.activation)
    _stairs(upper, x, y, f"few-spike neuron, K = {fit.table.K}")
    upper.set(ylabel="output")
    upper.legend(frameon=False)
    middle.axhline(0, color=GREY, linewidth=0.8)
    middle.plot(x.numpy(), (y - f).numpy(), ",", color=ORANGE)
    middle.set(ylabel="error")
    _stairs(lower, x, z.sum(0), "")
    lower.set(ylabel="spikes", xlabel="input x")
    whole(lower.yaxis)
    figure.suptitle(f"mean squared error {fit.mse:.2g}, largest {fit.largest:.2g}, {fit.spikes:.2f} spikes on average")
    return figure


def raster(fit: Fitted, inputs: int = 800) -> Figure:
    """Draw a dot for each spike: its step against the input."""
    x = torch.linspace(*fit.range, inputs, dtype=torch.float64)
    step, which = torch.stack(list(spikes(x, fit.table))).nonzero(as_tuple=True)
    figure, (axes,) = panels(1, 1, 7, 0.9 + 0.2 * fit.table.K)
    axes.plot(x[which].numpy(), step.numpy() + 1, ".", color=BLUE, markersize=1.2)
    axes.set(xlabel="input x", ylabel="time step", ylim=(fit.table.K + 0.7, 0.3))
    axes.set_title(f"spikes of few-spike neurons for {fit.activation}")
    whole(axes.yaxis)
    return figure


def errors(fits: Sequence[Fitted]) -> Figure:
    """Draw the mean squared error against K and against the mean number of spikes, a line for each range."""
    figure, (by_K, by_spikes) = panels(2, 2, 4.5, 3.6, sharey=True)
    for interval, color in zip(dict.fromkeys(fit.range for fit in fits), cycle(COLORS), strict=False):
        line = sorted((fit for fit in fits if fit.range == interval), key=lambda fit: fit.table.K)
        mse, label = [fit.mse for fit in line], f"[{interval[0]:g}, {interval[1]:g}]"
        by_K.semilogy([fit.table.K for fit in line], mse, "o-", color=color, label=label)
        by_spikes.semilogy([fit.spikes for fit in line], mse, "o-", color=color)
    by_K.set(xlabel="time steps K", ylabel="mean squared error")
    whole(by_K.xaxis)
    by_K.legend(frameon=False, title="range")
    by_spikes.set(xlabel="mean spikes")
    figure.suptitle(f"few-spike neurons for {fits[0].activation}")
    return figure


def codes(K: int = 10, inputs: int = 4000) -> dict[str, list[tuple[int, float, float]]]:
    """Return (steps, root mean square error, mean spikes) of two codes for uniform inputs in [0, 1).

    The codes are few spikes in 1..`K` steps, and the rate of an integrate-and-fire neuron (v(0) = theta/2) after
    1..1023 steps of one simulation.
    """
    x = (torch.arange(inputs, dtype=torch.float64) + 0.5) / inputs
    found: dict[str, list[tuple[int, float, float]]] = {"few spikes": [], "rate": []}

    def rms(y: Tensor) -> float:
        return float((y - x).square().mean().sqrt())

    for steps in range(1, K + 1):
        table = relu(steps, torch.ones((), dtype=torch.float64))
        count = sum(spikes(x, table), start=torch.zeros_like(x))
        found["few spikes"].append((steps, rms(decoded(x, table)), float(count.mean())))
    v, count = torch.full_like(x, 0.5), torch.zeros_like(x)
    for steps in range(1, LONGEST + 1):
        s, v = if_step(x, v)
        count += s
        found["rate"].append((steps, rms(count / steps), float(count.mean())))
    return found


def error_against_steps(found: Mapping[str, Sequence[tuple[int, float, float]]]) -> Figure:
    """Draw the errors that `codes` returns against steps and against spikes."""
    figure, (by_steps, by_spikes) = panels(2, 2, 4.5, 3.6, sharey=True)
    for (name, points), color, marker in zip(found.items(), cycle(COLORS), cycle(("o-", "-")), strict=False):
        steps, error, count = zip(*points, strict=True)
        by_steps.loglog(steps, error, marker, color=color, label=name, markersize=4)
        by_spikes.loglog(count, error, marker, color=color, markersize=4)
    by_steps.axhline(found["few spikes"][-1][1], color=GREY, linestyle="--", linewidth=0.8)
    by_steps.set(xlabel="time steps", ylabel="root mean square error (of the range)")
    by_steps.legend(frameon=False)
    by_spikes.set(xlabel="mean spikes")
    return figure


def counts_figure(by_network: Mapping[str, Tensor]) -> Figure:
    """Draw the shares of neurons by their number of spikes, [K + 1] for each network."""
    figure, (axes,) = panels(1, 1, 7, 3.4)
    width = 0.8 / len(by_network)
    for k, (name, share) in enumerate(by_network.items()):
        at = torch.arange(len(share)) + (k - (len(by_network) - 1) / 2) * width
        axes.bar(at.numpy(), share.numpy(), width, label=name, color=BLUE, alpha=1 - 0.7 * k / len(by_network))
    axes.set(xlabel="spikes in one inference", ylabel="share of neurons")
    whole(axes.xaxis)
    axes.legend(frameon=False)
    return figure


def _stairs(axes: Axes, x: Tensor, y: Tensor, label: str) -> None:
    """Draw a piecewise constant function, without lines at its jumps."""
    jumps = (y.diff().abs() > 1e-12).nonzero().flatten() + 1
    edges = torch.cat([torch.zeros(1, dtype=torch.int64), jumps, torch.tensor([len(x)])])
    first, last = edges[:-1], edges[1:] - 1
    axes.hlines(y[first].numpy(), x[first].numpy(), x[last].numpy(), color=BLUE, linewidth=1.6, label=label)
