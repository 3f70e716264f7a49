"""Quantised clip-floor-shift activation, `neuron=qcfs`: it trains the ANN on values that its SNN can emit.

h(z) = lam floor(clip(z/lam, 0, 1) L + 1/2) / L. Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and
Ultra-low-latency Spiking Neural Networks", ICLR 2022. With T = L steps, theta = lam and v(0) = theta/2, an IF site with
soft reset emits h(z) exactly for a constant input z.
"""

from snnexp.errors import integer
from snnexp.neuron.clip import Bounded


class QCFS(Bounded):
    """h as above with `L` >= 1 levels and one bound lam per layer, which starts at `lam` and is learnt if `trainable`.

    Straight-through floor: dh/dz = 1 on [0, lam] and 0 outside; dh/dlam = (h - z)/lam inside, 1 above, 0 below. (The
    paper prints another dh/dlam; its authors' code, which clips before it floors, has this one.) Raises `InvalidValue`.
    """

    def __init__(self, L: int = 4, lam: float = 8.0, trainable: bool = True) -> None:
        super().__init__(lam, trainable, "lam")
        self.levels = integer("L", L, at_least=1)
