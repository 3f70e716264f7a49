"""`task=gradient_sparsity`: train, and record how much of the gradient is exactly zero after each epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from snnexp.analysis.layers import layer_figure, layer_rows
from snnexp.analysis.sparsity import sparsity
from snnexp.dataset.base import Data
from snnexp.errors import integer
from snnexp.record import Rows
from snnexp.session import Session
from snnexp.task.train import Measurement, Train
from snnexp.timefold import TimeFold
from snnexp.training import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("potentials", "currents", "rate", "weights")


class GradientSparsity(Train):
    """Train as `task=train`. After each epoch, count the exact zeros in the backward pass of the first `batch`
    validation samples, as sparsity/<what>/<layer> and sparsity/skippable, in a table and a figure. Raises InvalidValue.
    """

    def __init__(self, batch: int) -> None:
        self.batch = integer("batch", batch, at_least=1)

    def measurement(self, session: Session) -> Measurement:
        return Zeros(session.loss, self.batch)


class Zeros(Measurement):
    def __init__(self, loss: nn.Module, batch: int) -> None:
        self.loss, self.batch = loss, batch

    def __call__(self, net: TimeFold, data: Data, device: torch.device) -> Metrics:
        x, y = next(data.val.batches(self.batch))
        found = sparsity(net, self.loss, x.to(device), y.to(device))
        metrics = {f"sparsity/weights/{name}": share for name, share in found.weights.items()}
        for name, site in found.sites.items():
            metrics |= {f"sparsity/{what}/{name}": value for what, value in site._asdict().items()}
        return metrics | {"sparsity/skippable": found.skippable}

    def outcome(self, history: Sequence[Metrics]) -> tuple[Mapping[str, Rows], Mapping[str, Figure]]:
        rows = layer_rows(history, "sparsity", COLUMNS)
        return {"sparsity": rows}, {"sparsity": layer_figure(rows, COLUMNS, "share, measured after each epoch")}
