"""S(x), the sine surrogate of the computer lab (part I, question i; lab setting alpha = 1).

g(x)  = 1/2 sin(pi x / (2 alpha)) + 1/2      on |x| <= alpha, 0 below, 1 above        (1)
g'(x) = pi / (4 alpha) cos(pi x / (2 alpha)) on |x| <= alpha, 0 outside               (2)
"""

import math

import torch
from torch import Tensor

from snnexp.surrogate.base import Surrogate


class Sine(Surrogate):
    """Sine surrogate of half-width `alpha` > 0 (in units of the membrane potential), else `InvalidValue`."""

    alpha: float

    def __init__(self, alpha: float = 1.0, spiking: bool = True) -> None:
        super().__init__(spiking=spiking, alpha=alpha)

    def primitive(self, x: Tensor) -> Tensor:
        return 0.5 * torch.sin(math.pi / (2 * self.alpha) * x.clamp(-self.alpha, self.alpha)) + 0.5  # Eq. (1)

    def derivative(self, x: Tensor) -> Tensor:
        angle = math.pi / (2 * self.alpha) * x.clamp(-self.alpha, self.alpha)
        # Eq. (2); `<`, because the cosine is 0 at the corner but its rounded value is not
        return angle.cos_().mul_(math.pi / (4 * self.alpha)).mul_(x.abs() < self.alpha)
