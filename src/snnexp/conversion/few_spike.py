"""Few-spike conversion, `conversion=few_spike`: the times of a few spikes encode a number. Any elementwise activation.

Stoeckl and Maass, "Optimized spiking neurons can classify images with high accuracy through temporal coding with two
spikes", Nature Machine Intelligence 2021; see `snnexp.few_spike.table` for the neuron. K, the steps of a layer, is T.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from snnexp.activations import Activation, of_module
from snnexp.conversion.neuron import FewSpike
from snnexp.conversion.thresholds import BINS, SMALLEST, counted
from snnexp.conversion.trains import along
from snnexp.conversion.vocabulary import Curve
from snnexp.conversion.walk import Layer
from snnexp.errors import UserError, boolean, choice, require
from snnexp.few_spike.table import Coefficients, decoded, load_tables, relu, spikes

GRID = 100  # ranges tried for a ReLU, up to the largest activation
RIDGE = 1e-4  # of the regression of the output weights, as a share of the neurons


class Histogram(NamedTuple):
    """A histogram of each channel, or one [1, B] of all: `x` [C, B], the centres of the bins, `counts` [C, B], and
    `target` [C, B], the mean of the activation in each bin."""

    x: Tensor
    counts: Tensor
    target: Tensor


class FewSpikeConversion:
    """Places the few-spike neuron with the least squared error, for the layer or `per_channel`, on the inputs that the
    converted network below delivers for the calibration images.

    For a ReLU, also clipped or quantised, it is the analytic table, with one of 100 ranges up to the largest
    activation; it rounds to the `nearest` value, or `down` as in the paper (T = h = d). For other activations it is a
    table for the activation and K from `tables`, a folder of files of task=fit_few_spike (null: the shipped tables,
    each for several ranges), with the output weights d regressed on the inputs. Raises InvalidValue, and UserError,
    naming the layer, where there is no table.
    """

    neuron = FewSpike
    maxpool: str | None = None  # max pooling acts on the numbers that spikes encode
    per_T = True

    def __init__(self, per_channel: bool = False, tables: str | None = None, rounding: str = "nearest") -> None:
        self.per_channel = boolean("per_channel", per_channel)
        require(tables is None or Path(tables).is_dir(), "tables", tables, "a folder, or null")
        self.rounding = choice("rounding", rounding, ("nearest", "down"))
        self.tables = None if tables is None else Path(tables)

    def place(self, layer: Layer) -> FewSpike:
        seen = _seen(layer, self.per_channel)
        if isinstance(layer.activation, Curve):
            activation = of_module(layer.activation[0])
            assert activation is not None
            _as_fitted(activation, layer)
            table = _regressed(seen, self._candidates(activation, layer))
        else:
            table = _widest(seen, layer.T, self.rounding)
        _, a = next(layer.activations())
        at = Coefficients(*(part.view(len(part), 1, -1, *[1] * (a.dim() - 2)).to(a) for part in table))
        return FewSpike(at, along(a.new_zeros(a.shape[1]), a.dim()))

    def _candidates(self, activation: Activation, layer: Layer) -> list[Coefficients]:
        fitted = load_tables(activation.name, self.tables)
        scales = (1,) if activation.bounded else (1, 2, 4)  # for inputs beyond the range of a fit
        tables = [fit.table for fit in fitted if fit.table.K == layer.T]
        found = [Coefficients(*(scale * part for part in table)) for table in tables for scale in scales]
        if not found:
            have = ", ".join(str(K) for K in sorted({fit.table.K for fit in fitted})) or "none"
            raise UserError(
                f"layer {layer.name} ({activation.module.__name__}) has no few-spike coefficients for K = {layer.T} "
                f"(timesteps; there are: {have}). Fit them with task=fit_few_spike task.activation={activation.name} "
                f"'task.K=[{layer.T}]', and give the folder with conversion.tables=FOLDER"
            )
        return found


def _as_fitted(activation: Activation, layer: Layer) -> None:
    """Raise UserError if no coefficients were fitted for the activation's parameters, as for LeakyReLU(0.5)."""
    x = torch.linspace(-8, 8, 1001)
    f = copy.deepcopy(layer.activation).cpu().float()
    if not torch.allclose(f(x), activation.function(x), atol=0.01):  # accepts the tanh form of GELU
        known = f"the {activation.name} that few-spike coefficients are fitted to: there are none for it"
        raise UserError(f"layer {layer.name} ({f[0]}) has other parameters than {known}")  # type: ignore[index]


def _seen(layer: Layer, per_channel: bool) -> Histogram:
    """Return the histogram of the arriving inputs, by channel or layer, with the ANN's mean activation in each bin."""
    ends = [(c.amin((0, 2)), c.amax((0, 2))) for _, c in _rows(layer, per_channel)]
    low, high = torch.stack([least for least, _ in ends]).amin(0), torch.stack([most for _, most in ends]).amax(0)
    width = ((high - low) / BINS).clamp(min=SMALLEST / BINS)
    counts = torch.zeros(len(low), BINS, device=low.device)
    total = torch.zeros_like(counts)
    for a, c in _rows(layer, per_channel):
        counts += counted(c, low, width, BINS)
        total += counted(c, low, width, BINS, a)
    centres = low.unsqueeze(1) + width.unsqueeze(1) * (torch.arange(BINS, device=low.device) + 0.5)
    return Histogram(centres, counts, total / counts.clamp(min=1))


def _rows(layer: Layer, per_channel: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (a, c) of `Layer.means` as [n, C, places], or as [n, 1, all]."""
    for pair in layer.means():
        a, c = (x.reshape(len(x), x.shape[1] if per_channel else 1, -1) for x in pair)
        yield a, c


def _widest(seen: Histogram, K: int, rounding: str) -> Coefficients:
    """Return the table [K, C] of a ReLU with the best range."""
    largest = torch.where(seen.counts > 0, seen.target, 0).amax(1, keepdim=True).clamp(min=SMALLEST)
    least, top = torch.full_like(largest, torch.inf), largest
    for i in range(GRID, 0, -1):
        candidate = largest * (i / GRID) / (1 - 2.0**-K)  # the largest value of the grid is this share
        table = relu(K, candidate, rounding)
        error = (seen.counts * (decoded(seen.x, table) - seen.target).square()).sum(1, keepdim=True)
        top = torch.where(error < least, candidate, top)
        least = torch.minimum(error, least)
    return relu(K, top.squeeze(1), rounding)


def _regressed(seen: Histogram, candidates: list[Coefficients]) -> Coefficients:
    """Return the best of the tables by channel, with d = argmin of the squared error: [K, C]."""
    least: Tensor | None = None
    best: Coefficients | None = None
    w = (seen.counts / seen.counts.sum(1, keepdim=True)).double().unsqueeze(1)
    y = seen.target.double().unsqueeze(2)
    for table in candidates:
        z = torch.stack(list(spikes(seen.x.double(), table)), 1)  # [C, K, bins]
        d0 = table.d.to(z).view(1, -1, 1)
        gram, moment = (z * w) @ z.transpose(1, 2), (z * w) @ (y - z.transpose(1, 2) @ d0)
        eye = torch.eye(len(table.d), dtype=z.dtype, device=z.device)
        d = d0 + torch.linalg.solve(gram + RIDGE * eye, moment)  # stays near the fitted d where there are no inputs
        error = (w.transpose(1, 2) * (y - z.transpose(1, 2) @ d).square()).sum((1, 2))
        T, h = (part.to(z).view(-1, 1).expand(-1, len(d)) for part in (table.T, table.h))
        made = Coefficients(T, h, d.squeeze(2).T)
        if least is None or best is None:
            least, best = error, made
        best = Coefficients(*(torch.where(error < least, new, old) for new, old in zip(made, best, strict=True)))
        least = torch.minimum(error, least)
    assert best is not None
    return best
