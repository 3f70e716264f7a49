"""A leaky integrator that never fires: a readout for losses on the membrane potential. Not an option of `neuron=`."""

from torch import Tensor

from snnexp.errors import number
from snnexp.timefold import Site


class Integrator(Site):
    """A site that emits its potential v(t) = alpha v(t-1) + c(t), from v = 0; 0 < `alpha` <= 1, else `InvalidValue`.

    [T*N, ...] -> [T*N, ...]; alpha = 1 sums the input.
    """

    spiking = False

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = number("alpha", alpha, "a number above 0 and at most 1", above=0, at_most=1)

    def step(self, current: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        v = current if state is None else self.alpha * state + current
        return v, v
