"""`task=gradient_sparsity`: a training that records, after each epoch, how much of the gradient is exactly zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from snnexp.analysis import figures
from snnexp.analysis.sparsity import sparsity
from snnexp.dataset.base import Data
from snnexp.errors import InvalidValue, integer
from snnexp.session import Session
from snnexp.task.train import Measurement, Outcome, by_layer, train
from snnexp.timefold import TimeFold
from snnexp.training import Metrics

COLUMNS = ("potentials", "currents", "rate", "weights")


def gradient_sparsity(session: Session, batch: int) -> Metrics:
    """As `train`; after each epoch the exact zeros in the backward pass of the first `batch` validation samples, as
    sparsity/<what>/<layer> and sparsity/skippable, in a table and a figure. Raises UserError.
    """
    try:
        return train(session, Zeros(session, integer("batch", batch, at_least=1)))
    except InvalidValue as error:
        raise error.told(f"task.{error.name}") from error


class Zeros(Measurement):
    def __init__(self, session: Session, batch: int) -> None:
        self.loss, self.batch = session.loss, batch

    def __call__(self, net: TimeFold, data: Data, device: torch.device) -> Metrics:
        x, y = next(data.val.batches(self.batch))
        found = sparsity(net, self.loss, x.to(device), y.to(device))
        metrics = {f"sparsity/weights/{name}": share for name, share in found.weights.items()}
        for name, site in found.sites.items():
            metrics |= {f"sparsity/{what}/{name}": value for what, value in site._asdict().items()}
        return metrics | {"sparsity/skippable": found.skippable}

    def outcome(self, history: Sequence[Metrics]) -> Outcome:
        rows = by_layer(history, "sparsity", COLUMNS)
        return {"sparsity": rows}, {"sparsity": figures.by_layer(rows, COLUMNS, "share, measured after each epoch")}
