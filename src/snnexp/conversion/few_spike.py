"""Few-spike conversion, `conversion=few_spike`: a value is the times of a few spikes. Any elementwise activation.

Stoeckl and Maass, "Optimized spiking neurons can classify images with high accuracy through temporal coding with two
spikes", Nature Machine Intelligence 2021; the neuron: `snnexp.few_spike.table`. K, the steps of a layer, is T.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from snnexp.conversion.graph import Curve
from snnexp.conversion.neuron import FewSpike as Neuron
from snnexp.conversion.thresholds import BINS, SMALLEST, Histogram, counted
from snnexp.conversion.walk import Layer, along
from snnexp.errors import UserError, require
from snnexp.few_spike.table import FUNCTIONS, Table, decoded, load, relu, spikes

BOUNDED = ("sigmoid", "tanh", "hardsigmoid", "softsign", "hardtanh")  # what they are does not scale with the input
GRID = 100  # ranges tried for a ReLU, up to the largest activation
RIDGE = 1e-4  # of the output weights' regression, in shares of the neurons


class FewSpike:
    """Each activation's neuron is the one with the least squared error on the inputs that the converted network below
    gives on calibration data, for the layer or `per_channel`.

    ReLU (clipped and quantised ones as well): the analytic table, its range one of 100 shares of the largest
    activation. Others: a table for the activation and K in `tables`, a folder of files of task=fit_few_spike (null:
    those that are shipped, each for several ranges), with the output weights d regressed on the inputs. UserError,
    naming the layer, where there is no table. Raises InvalidValue.
    """

    maxpool: str | None = None  # max pooling acts on what spikes mean
    decoded = True
    per_T = True

    def __init__(self, per_channel: bool = False, tables: str | None = None) -> None:
        require(isinstance(per_channel, bool), "per_channel", per_channel, "true or false")
        require(tables is None or Path(tables).is_dir(), "tables", tables, "a folder, or null")
        self.per_channel, self.tables = per_channel, None if tables is None else Path(tables)

    def place(self, layer: Layer) -> Neuron:
        seen = _seen(layer, self.per_channel)
        if isinstance(layer.activation, Curve):
            name = type(layer.activation[0]).__name__.lower().replace("leakyrelu", "leaky_relu")
            _as_fitted(name, layer)
            table = _regressed(seen, self._candidates(name, layer))
        else:
            table = _widest(seen, layer.T)
        _, a = next(layer.activations())
        at = Table(*(part.view(len(part), 1, -1, *[1] * (a.dim() - 2)).to(a) for part in table))
        return Neuron(at, along(a.new_zeros(a.shape[1]), a.dim()))

    def _candidates(self, name: str, layer: Layer) -> list[Table]:
        fitted = load(name, self.tables)
        scales = (1,) if name in BOUNDED else (1, 2, 4)  # for inputs beyond the range of a fit
        found = [Table(*(s * part for part in fit.table)) for fit in fitted if fit.table.K == layer.T for s in scales]
        if not found:
            have = ", ".join(str(K) for K in sorted({fit.table.K for fit in fitted})) or "none"
            raise UserError(
                f"layer {layer.name} ({type(layer.activation[0]).__name__}) has no few-spike coefficients for K = "  # type: ignore[index]
                f"{layer.T} (timesteps; there are: {have}). Fit them with task=fit_few_spike activation={name} "
                f"K=[{layer.T}], and give the folder with conversion.tables=FOLDER"
            )
        return found


def _as_fitted(name: str, layer: Layer) -> None:
    """Raises UserError for an activation that is not the function which has coefficients, such as LeakyReLU(0.5)."""
    x = torch.linspace(-8, 8, 1001)
    f = copy.deepcopy(layer.activation).cpu().float()
    if name in FUNCTIONS and not torch.allclose(f(x), FUNCTIONS[name](x), atol=0.01):  # also the tanh form of GELU
        raise UserError(
            f"layer {layer.name} ({f[0]}) has other parameters than the {name} that few-spike coefficients "  # type: ignore[index]
            "are fitted to: there are none for it"
        )


def _seen(layer: Layer, per_channel: bool) -> Histogram:
    """The inputs that arrive, by channel or all in one row, and the ANN's mean activation at each."""
    low = high = None
    for _, c in _rows(layer, per_channel):
        least, most = c.amin((0, 2)), c.amax((0, 2))
        low = least if low is None else torch.minimum(low, least)
        high = most if high is None else torch.maximum(high, most)
    assert low is not None
    assert high is not None
    width = ((high - low) / BINS).clamp(min=SMALLEST / BINS)
    counts = torch.zeros(len(low), BINS, device=low.device)
    total = torch.zeros_like(counts)
    for a, c in _rows(layer, per_channel):
        counts += counted(c, low, width, BINS)
        total += counted(c, low, width, BINS, a)
    centres = low.unsqueeze(1) + width.unsqueeze(1) * (torch.arange(BINS, device=low.device) + 0.5)
    return Histogram(centres, counts, total / counts.clamp(min=1))


def _rows(layer: Layer, per_channel: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """(a, c) of `Layer.means` as [n, C, places], or [n, 1, all]."""
    for pair in layer.means():
        a, c = (x.reshape(len(x), x.shape[1] if per_channel else 1, -1) for x in pair)
        yield a, c


def _widest(seen: Histogram, K: int) -> Table:
    """The ReLU's table [K, C] of the best range."""
    largest = torch.where(seen.counts > 0, seen.target, 0).amax(1, keepdim=True).clamp(min=SMALLEST)
    least, top = torch.full_like(largest, torch.inf), largest
    for i in range(GRID, 0, -1):
        candidate = largest * (i / GRID) / (1 - 2.0**-K)  # the grid's last value is the share's end
        table = relu(K, candidate)
        error = (seen.counts * (decoded(seen.x, table) - seen.target).square()).sum(1, keepdim=True)
        top = torch.where(error < least, candidate, top)
        least = torch.minimum(error, least)
    return relu(K, top.squeeze(1))


def _regressed(seen: Histogram, candidates: list[Table]) -> Table:
    """By channel, the best of the tables, with d = argmin of the squared error: [K, C]."""
    least: Tensor | None = None
    best: Table | None = None
    w = (seen.counts / seen.counts.sum(1, keepdim=True)).double().unsqueeze(1)
    y = seen.target.double().unsqueeze(2)
    for table in candidates:
        z = torch.stack(list(spikes(seen.x.double(), table)), 1)  # [C, K, bins]
        d0 = table.d.to(z).view(1, -1, 1)
        gram, moment = (z * w) @ z.transpose(1, 2), (z * w) @ (y - z.transpose(1, 2) @ d0)
        eye = torch.eye(len(table.d), dtype=z.dtype, device=z.device)
        d = d0 + torch.linalg.solve(gram + RIDGE * eye, moment)  # towards the fitted one where no inputs are
        error = (w.transpose(1, 2) * (y - z.transpose(1, 2) @ d).square()).sum((1, 2))
        T, h = (part.to(z).view(-1, 1).expand(-1, len(d)) for part in (table.T, table.h))
        made = Table(T, h, d.squeeze(2).T)
        if least is None or best is None:
            least, best = error, made
        best = Table(*(torch.where(error < least, new, old) for new, old in zip(made, best, strict=True)))
        least = torch.minimum(error, least)
    assert best is not None
    return best
