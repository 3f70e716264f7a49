"""`task=gradient_fidelity`: train, and compare the surrogate gradient with finite differences after each epoch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from snnexp.analysis import figures
from snnexp.analysis.finite_difference import Fidelity, Probe, compare, layers, sample
from snnexp.dataset.base import Data
from snnexp.errors import InvalidValue, integer, number
from snnexp.session import Session
from snnexp.task.train import Measurement, Outcome, by_layer, train
from snnexp.timefold import TimeFold
from snnexp.training import Metrics

log = logging.getLogger(__name__)


def gradient_fidelity(session: Session, weights: int, batch: int, eps: float) -> Metrics:
    """As `train`; after each epoch cosine similarity (with its standard error) and norm ratio of the surrogate gradient
    to finite differences of step `eps` at `weights` random weights of each layer, on the first `batch` validation
    samples, as fidelity/<what>/<layer>, in a table and a figure. Raises UserError.
    """
    try:
        number("eps", eps, "a number > 0", above=0)
        measure = Finite(session, integer("weights", weights, at_least=2), integer("batch", batch, at_least=1), eps)
    except InvalidValue as error:
        raise error.told(f"task.{error.name}") from error
    return train(session, measure)


class Finite(Measurement):
    def __init__(self, session: Session, weights: int, batch: int, eps: float) -> None:
        self.loss, self.seed, self.weights, self.batch, self.eps = session.loss, session.seed, weights, batch, eps

    def __call__(self, net: TimeFold, data: Data, device: torch.device) -> Metrics:
        x, y = next(data.val.batches(self.batch))
        generator, metrics = torch.Generator().manual_seed(self.seed), Metrics()
        for layer in layers(net):
            at = sample(net, layer, self.weights, generator)
            try:
                probe = Probe(net, self.loss, layer, x.to(device), y.to(device), at)
            except InvalidValue:  # used twice, or over tokens
                log.warning("no finite differences of layer %s: used more than once, or not on [N, C, ...]", layer)
                continue
            found = compare(probe.surrogate(), probe.finite(self.eps))
            metrics |= {f"fidelity/{what}/{layer}": value for what, value in found._asdict().items()}
        return metrics

    def outcome(self, history: Sequence[Metrics]) -> Outcome:
        rows = by_layer(history, "fidelity", Fidelity._fields)
        return {"fidelity": rows}, {
            "fidelity": figures.by_layer(
                rows, ("cosine", "ratio", "nonzero"), "surrogate gradient against finite differences"
            )
        }
