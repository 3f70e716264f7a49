"""`task=gradient_fidelity`: train, and compare the surrogate gradient with finite differences after each epoch."""

import logging
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure

from snnexp.analysis.finite_difference import Fidelity, Probe, compare, layers, sample
from snnexp.analysis.layers import layer_figure, layer_rows
from snnexp.errors import InvalidValue, integer, number
from snnexp.record import Rows
from snnexp.session import Session
from snnexp.task.train import Train
from snnexp.timefold import TimeFold
from snnexp.training import Metrics

log = logging.getLogger(__name__)


class GradientFidelity(Train):
    """Train as `task=train` does. After each epoch, compare the surrogate gradient with finite differences of step
    `eps`, at `weights` random weights of each layer and on the first `batch` validation samples. Logs cosine similarity
    (with its standard error) and norm ratio as fidelity/<quantity>/<layer>, and writes a table and a figure. Raises
    InvalidValue.
    """

    def __init__(self, weights: int, batch: int, eps: float) -> None:
        self.weights = integer("weights", weights, at_least=2)
        self.batch = integer("batch", batch, at_least=1)
        self.eps = number("eps", eps, "a number > 0", above=0)

    def measured(self, session: Session, net: TimeFold, device: torch.device) -> Metrics:
        x, y = next(session.data.val.batches(self.batch))
        generator, metrics = torch.Generator().manual_seed(session.seed), Metrics()
        for layer in layers(net):
            at = sample(net, layer, self.weights, generator)
            try:
                probe = Probe(net, session.loss, layer, x.to(device), y.to(device), at)
            except InvalidValue:  # a layer that is used twice, or over tokens
                log.warning("no finite differences of layer %s: used more than once, or not on [N, C, ...]", layer)
                continue
            found = compare(probe.surrogate(), probe.finite(self.eps))
            metrics |= {f"fidelity/{what}/{layer}": value for what, value in found._asdict().items()}
        return metrics

    def outcome(self, history: Sequence[Metrics]) -> tuple[Mapping[str, Rows], Mapping[str, Figure]]:
        rows = layer_rows(history, "fidelity", Fidelity._fields)
        title = "surrogate gradient against finite differences"
        return {"fidelity": rows}, {"fidelity": layer_figure(rows, ("cosine", "ratio", "nonzero"), title)}
