"""The multiply-accumulates of every operation in a graph, counted by `torch.utils.flop_counter`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from snnexp.conversion.flow import Flow
from snnexp.conversion.vocabulary import where

log = logging.getLogger(__name__)


@torch.no_grad()
def multiply_accumulates(flow: Flow, x: Tensor) -> dict[fx.Node, float]:
    """Return the multiply-accumulates of each node of an ANN for one sample x [1, ...], also of functional layers and
    matrix products.

    Those of a module that has weights but no operation that the counter knows (LSTM, Bilinear) are NaN, with a warning
    that names it.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imported late: only some networks need it

    found, env = dict[fx.Node, float](), {flow.placeholder: x}
    with FlopCounterMode(display=False) as counter, _without_fast_paths():
        for node in flow.nodes[1:-1]:
            before = counter.get_total_flops()
            flow.run([node], env)
            found[node] = (counter.get_total_flops() - before) / 2
            module = flow.module(node)
            if module is not None and not found[node] and _weighs(module):
                found[node] = math.nan
                log.warning(
                    "layer %s (%s) does work that cannot be counted: multiply-accumulates, synaptic operations and "
                    "energy are left out of the results",
                    *(where(node), type(module).__name__),
                )
    return found


def _weighs(module: nn.Module) -> bool:
    """Return whether a module has weight matrices that it multiplies with its input."""
    looked_up = isinstance(module, nn.Embedding | nn.EmbeddingBag)
    return not looked_up and any(weight.dim() > 1 and weight.numel() > 1 for weight in module.parameters())


@contextmanager
def _without_fast_paths() -> Iterator[None]:
    """Let attention run as the operations that are counted instead of as one that is not."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
