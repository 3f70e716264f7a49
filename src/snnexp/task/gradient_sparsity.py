"""`task=gradient_sparsity`: train, and record how much of the gradient is exactly zero after each epoch."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure

from snnexp.analysis.layers import layer_figure, layer_rows
from snnexp.analysis.sparsity import sparsity
from snnexp.errors import integer
from snnexp.record import Rows
from snnexp.session import Session
from snnexp.task.train import Train
from snnexp.timefold import TimeFold
from snnexp.training import Metrics

COLUMNS = ("potentials", "currents", "rate", "weights")


class GradientSparsity(Train):
    """Train as `task=train` does. After each epoch, count the exact zeros in the backward pass of the first `batch`
    validation samples. Logs sparsity/<quantity>/<layer> and sparsity/skippable, and writes a table and a figure. Raises
    InvalidValue.
    """

    def __init__(self, batch: int) -> None:
        self.batch = integer("batch", batch, at_least=1)

    def measured(self, session: Session, net: TimeFold, device: torch.device) -> Metrics:
        x, y = next(session.data.val.batches(self.batch))
        found = sparsity(net, session.loss, x.to(device), y.to(device))
        metrics = {f"sparsity/weights/{name}": share for name, share in found.weights.items()}
        for name, site in found.sites.items():
            metrics |= {f"sparsity/{what}/{name}": value for what, value in site._asdict().items()}
        return metrics | {"sparsity/skippable": found.skippable}

    def outcome(self, history: Sequence[Metrics]) -> tuple[Mapping[str, Rows], Mapping[str, Figure]]:
        rows = layer_rows(history, "sparsity", COLUMNS)
        return {"sparsity": rows}, {"sparsity": layer_figure(rows, COLUMNS, "share, measured after each epoch")}
