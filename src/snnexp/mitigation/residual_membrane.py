"""Residual membrane potential (SRP): neurons whose potential is negative after a rehearsal are silenced.

Hao et al., "Reducing ANN-SNN Conversion Error through Residual Membrane Potential", AAAI 2023: the network runs
`rehearse` steps; then it starts again, and neurons with v(rehearse) < 0 emit nothing in the T steps that count. (The
authors' code silences v <= 0.001 theta.) It only corrects neurons that fire too often; the ANN's activation of these is
mostly 0.
"""

import torch
from torch import Tensor

from snnexp.conversion.neuron import ScaledIF
from snnexp.errors import integer
from snnexp.mitigation.base import Mitigation, Replaced

State = tuple[Tensor, Tensor]  # v [N, ...], and a mask of the silent neurons


class ResidualMembrane(Mitigation):
    """Rehearses `rehearse` >= 1 steps of the whole network before the steps that count. Raises InvalidValue."""

    def __init__(self, rehearse: int) -> None:
        self.before = integer("rehearse", rehearse, at_least=1)

    def neuron(self, placed: ScaledIF) -> ScaledIF:
        return Silenced(placed)

    def rehearsed(self, neuron: ScaledIF, state: State) -> State:
        v, _ = state
        return neuron.start(v), v < 0


class Silenced(Replaced):
    """Integrate-and-fire neurons that can be silenced for an input: they then integrate and never fire."""

    def scan(self, x: Tensor, state: State | None, out: Tensor | None = None) -> tuple[Tensor, State]:  # type: ignore[override]
        v, silent = (None, torch.zeros_like(x[0], dtype=torch.bool)) if state is None else state
        out, v = super().scan(x, v, out)
        v += out.sum(0) * silent
        return out.mul_(~silent), (v, silent)
