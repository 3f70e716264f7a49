"""Unevenness in the smallest neurons: step by step, and over all orders in which spikes can arrive.

A neuron (IF, soft reset) with k inputs receives W x(t), x(t) in {0, 1}^k, for T steps. For the same number of spikes on
each input, another order can give another count. The expected count is that for input that arrives evenly,

    n* = clip(n + floor(v(T)/theta), 0, T),

and the error is n - n* spikes. It is above 0 only if v(T) < 0 after a spike (over-firing), below 0 only if v(T) >=
theta with a step to spare (under-firing); its size is then ceil(-v(T)/theta) or floor(v(T)/theta), at most the number
of spikes or of spare steps. Bu et al., ICLR 2022; snnexp.conversion.measure does the same for layers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from snnexp.analysis.style import GREY, panels, shades, whole
from snnexp.dynamics import if_step
from snnexp.errors import integer, number, require

MOST = 20  # inputs x steps: 2^20 orders
DECIMALS = 9  # of rounded potentials, so that sums of decimal weights meet multiples of theta


@dataclass
class SmallNeuron:
    """`weights` of the inputs, threshold `theta` > 0, v(0) = `start` x theta, `T` >= 1 steps. Raises InvalidValue."""

    weights: Sequence[float]
    theta: float = 1.0
    start: float = 0.0
    T: int = 8

    def __post_init__(self) -> None:
        listed = isinstance(self.weights, Sequence) and bool(self.weights)
        require(listed, "weights", self.weights, "a list of numbers, one per input")
        self.weights = [number("weights", w, "a list of numbers") for w in self.weights]
        self.theta = number("theta", self.theta, "a number > 0", above=0)
        self.start = number("start", self.start, "a share of the threshold, from 0 to 1", at_least=0, at_most=1)
        self.T = integer("T", self.T, at_least=1)

    def run(self, spikes: Tensor) -> tuple[Tensor, Tensor]:
        """Map input [k, T, ...] of 0 and 1 to (counts, v(T)), [...] in double precision."""
        v = torch.full(spikes.shape[2:], self.start * self.theta, dtype=torch.float64)
        n, w = torch.zeros_like(v), torch.tensor(self.weights, dtype=torch.float64)
        for t in range(self.T):
            charged = (v + torch.tensordot(w, spikes[:, t].double(), 1)).round(decimals=DECIMALS)
            s, v = if_step(torch.zeros_like(v), charged, self.theta)
            v = v.round(decimals=DECIMALS)
            n += s
        return n, v

    def expected(self, n: Tensor, v: Tensor) -> Tensor:
        """Return n* from the count n and the residual v."""
        return (n + torch.floor((v / self.theta).round(decimals=DECIMALS))).clamp(0, self.T)


@dataclass
class Orders:
    """The outcome of all 2^(kT) inputs of a neuron: `share` of each error (in surplus spikes), shares that over- and
    under-fire, the share outside [0, theta) without an error, the widest range of counts for the same mean input, and
    the worst inputs as text: a word per input, a digit per step (empty: none)."""

    neuron: SmallNeuron
    orders: int
    share: dict[int, float]
    over: float
    under: float
    harmless: float
    widest: int
    worst_over: str
    worst_under: str

    @property
    def worst(self) -> tuple[int, int]:
        """The largest deficit and the largest surplus of spikes: (<= 0, >= 0)."""
        return min(self.share), max(self.share)

    def row(self) -> dict[str, Any]:
        """Return the row of the table."""
        few, many = self.worst
        row = asdict(self.neuron) | {"weights": " ".join(f"{w:g}" for w in self.neuron.weights)}
        row |= {name: getattr(self, name) for name in ("orders", "over", "under", "harmless")}
        row |= {"most_over": many, "most_under": -few}
        return row | {name: getattr(self, name) for name in ("widest", "worst_over", "worst_under")}


def search(neuron: SmallNeuron) -> Orders:
    """Run every input of 0 and 1 that `neuron` can get, at once. Raises InvalidValue if there are more than 2^20."""
    k, T = len(neuron.weights), neuron.T
    require(k * T <= MOST, "T", T, f"at most {MOST // k} for {k} inputs (2^{MOST} orders)")
    number_ = torch.arange(2 ** (k * T))
    spikes = torch.stack([number_ >> bit & 1 for bit in range(k * T)]).view(k, T, -1)
    n, v = neuron.run(spikes)
    error = (n - neuron.expected(n, v)).long()
    values, counts = torch.unique(error, return_counts=True)
    outside = (v < 0) | (v >= neuron.theta)
    counted = (spikes.sum(1) * (T + 1) ** torch.arange(k).view(-1, 1)).sum(0)  # identifies the mean input of an order
    zeros = torch.zeros((T + 1) ** k, dtype=n.dtype)
    most = zeros.scatter_reduce(0, counted, n, "amax", include_self=False)
    least = zeros.scatter_reduce(0, counted, n, "amin", include_self=False)

    def text(order: Tensor) -> str:
        words = spikes[:, :, int(order)].tolist()
        return "" if error[order] == 0 else " ".join("".join(map(str, word)) for word in words)

    share = {int(e): int(c) / len(error) for e, c in zip(values, counts, strict=True)}
    over, under, harmless = (float(kind.double().mean()) for kind in (error > 0, error < 0, outside & (error == 0)))
    worst = text(error.argmax()), text(error.argmin())
    return Orders(neuron, len(error), share, over, under, harmless, int((most - least).max()), *worst)


def trace(neuron: SmallNeuron, trains: Sequence[str]) -> list[dict[str, Any]]:
    """Run one input and return a row for each step, each with the final count, the expected one and the `kind`.
    `trains`: a word of 0 and 1 for each input, T digits long. Raises InvalidValue."""
    fit = len(trains) == len(neuron.weights) and all(len(w) == neuron.T and set(w) <= set("01") for w in trains)
    require(fit, "trains", list(trains), f"{len(neuron.weights)} words of {neuron.T} digits 0 or 1")
    v, n, rows = neuron.start * neuron.theta, 0, []
    for t in range(neuron.T):
        current = sum(w * int(train[t]) for w, train in zip(neuron.weights, trains, strict=True))
        charged = round(v + current, DECIMALS)
        fired = int(charged >= neuron.theta)
        n += fired
        v = round(charged - fired * neuron.theta, DECIMALS)
        word = " ".join(train[t] for train in trains)
        rows.append({"t": t + 1, "input": word, "current": current, "charged": charged, "spike": fired, "v": v})
    even = int(neuron.expected(*torch.tensor([n, v], dtype=torch.float64)))
    return [row | {"spikes": n, "expected": even, "kind": residual_kind(n, v, neuron)} for row in rows]


def residual_kind(n: int, v: float, neuron: SmallNeuron) -> str:
    """Classify the residual v: inside, over-firing, under-firing, correct zero or saturated."""
    if 0 <= v < neuron.theta:
        return "inside"
    if v < 0:
        return "over-firing" if n > 0 else "correct zero"
    return "under-firing" if n < neuron.T else "saturated"


def orders_figure(found: Sequence[Orders]) -> Figure:
    """Draw for each neuron, in a panel, the share of the orders of its spikes (log) that give each error."""
    neurons: dict[str, dict[int, dict[int, float]]] = {}
    for each in found:
        row = each.row()
        title = f"weights {row['weights']}\nθ = {row['theta']:g}, v(0) = {row['start']:g} θ"
        neurons.setdefault(title, {})[each.neuron.T] = each.share
    figure, axes_all = panels(len(neurons), 5, 2.6, 2.7, sharex=True, sharey=True)
    for axes, (title, shares) in zip(axes_all, neurons.items(), strict=True):
        for T, color in zip(shares, shades(len(shares)), strict=True):
            errors = sorted(shares[T])
            axes.plot(errors, [shares[T][e] for e in errors], "o-", color=color, markersize=3, label=f"T = {T}")
        axes.axvline(0, color=GREY, linewidth=0.6)
        axes.set_yscale("log")
        axes.set_title(title, size=9)
        whole(axes.xaxis)
    axes_all[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("spikes too many (above 0: over-firing, below: under-firing)")
    figure.supylabel("share of all orders")
    return figure
