"""Residual membrane potential (SRP): neurons that a rehearsal leaves with a negative potential stay silent.

Hao et al., "Reducing ANN-SNN Conversion Error through Residual Membrane Potential", AAAI 2023: the network runs
`rehearse` steps; then it starts anew, and neurons with v(rehearse) < 0 emit nothing in the T steps that count. (Its
authors' code silences v <= 0.001 theta.) It acts on over-firing alone: of neurons whose ANN is mostly 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnexp.conversion.neuron import ScaledIF
from snnexp.errors import integer
from snnexp.mitigation.base import Mitigation

State = tuple[Tensor, Tensor]  # v [N, ...], and which neurons are silent


class ResidualMembrane(Mitigation):
    """`rehearse` >= 1 steps of the whole network go before those that count. Raises InvalidValue."""

    def __init__(self, rehearse: int) -> None:
        self.before = integer("rehearse", rehearse, at_least=1)

    def neuron(self, placed: ScaledIF) -> ScaledIF:
        return Silenced(placed.theta, placed.v_init, placed.bias)

    def rehearsed(self, neuron: ScaledIF, state: State) -> State:
        v, _ = state
        return neuron.start(v), v < 0


class Silenced(ScaledIF):
    """Integrate-and-fire, some of whose neurons are silent for some inputs: these gather potential alone."""

    def scan(self, x: Tensor, state: State | None, out: Tensor | None = None) -> tuple[Tensor, State]:  # type: ignore[override]
        v, silent = (None, torch.zeros_like(x[0], dtype=torch.bool)) if state is None else state
        out, v = super().scan(x, v, out)
        v += out.sum(0) * silent
        return out.mul_(~silent), (v, silent)

    def residual(self, state: State) -> Tensor:
        return state[0]
