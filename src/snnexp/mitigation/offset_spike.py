"""Offset spikes (COS): a rehearsal finds the neurons that fire too often or too seldom, and moves their start v(0).

Hao et al., "Bridging the Gap between ANNs and SNNs by Calibrating Offset Spikes", ICLR 2023: site by site, the first
`rehearse` steps of the input are run. Where v >= theta remains, v(0) is raised, and where v < 0 remains after a spike,
v(0) is lowered, by the smallest distance, at least theta, that adds or removes exactly one spike:

    up   = max(theta, theta - max of v over steps without a spike),
    down = max(theta, min of v before the reset over steps with a spike, less theta, and a little more)

Then the site runs from there. The sites below have already finished, so the answer comes after depth x rehearse + T
steps. Neurons that fired at each step are unchanged (the authors' code moves them, to no effect while T = rehearse).
"""

import torch
from torch import Tensor

from snnexp.conversion.neuron import ScaledIF
from snnexp.errors import integer
from snnexp.mitigation.base import Mitigation, Replaced

MARGIN = 2**-10  # of theta, added to the distance that removes a spike; a power of 2 adds no rounding
State = tuple[Tensor, Tensor]  # v [N, ...], and the shift of v(0)


class OffsetSpike(Mitigation):
    """Rehearses the first `rehearse` >= 1 of T steps `rounds` >= 1 times, each time correcting one spike. Raises
    InvalidValue."""

    def __init__(self, rehearse: int, rounds: int = 1) -> None:
        self.again = integer("rehearse", rehearse, at_least=1)
        self.rounds = integer("rounds", rounds, at_least=1)

    def neuron(self, placed: ScaledIF) -> ScaledIF:
        return Offset(placed, self.again, self.rounds)


class Offset(Replaced):
    """Integrate-and-fire neuron whose start is moved, for each input, according to a rehearsal."""

    def __init__(self, placed: ScaledIF, rehearse: int, rounds: int) -> None:
        super().__init__(placed)
        self.rehearse, self.rounds = rehearse, rounds

    def scan(self, x: Tensor, state: State | None, out: Tensor | None = None) -> tuple[Tensor, State]:  # type: ignore[override]
        if state is None:
            moved = torch.zeros_like(x[0])
            for _ in range(self.rounds):
                moved = moved + self._shift(x[: self.rehearse], moved)
            state = self.start(x[0]) + moved, moved
        v, moved = state
        out, v = super().scan(x, v, out)
        return out, (v, moved)

    def residual(self, state: State) -> Tensor:
        return state[0] - state[1]

    def _shift(self, x: Tensor, moved: Tensor) -> Tensor:
        """Return the further shift of v(0), [N, ...], for the input x [rehearse, N, ...]."""
        start = self.start(x[0]) + moved
        out, left = super().scan(x, start.clone())
        fired, theta = out > 0, self.theta
        v = start + (x + self.bias).cumsum(0) - out.cumsum(0) + out  # before the reset
        up = theta - v.masked_fill(fired, -torch.inf).amax(0)
        down = v.masked_fill(~fired, torch.inf).amin(0) - theta
        left = left - moved
        seldom, often = (left >= theta) & ~fired.all(0), (left < 0) & fired.any(0)
        up, down = ((distance + MARGIN * theta).maximum(theta) for distance in (up, down))
        return torch.where(seldom, up, 0) - torch.where(often, down, 0)
