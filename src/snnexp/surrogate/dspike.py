"""Dspike with a fixed temperature: Li, Guo, Zhang, Deng, Hai, Gu, "Differentiable Spike: Rethinking Gradient-Descent
for Training Spiking Neural Networks", NeurIPS 2021; with x = v - theta, so centred at the threshold.

    g(x)  = tanh(b x) / (2 tanh(b/2)) + 1/2            on |x| <= 1/2, 0 below, 1 above    (1)
    g'(x) = b (1 - tanh^2(b x)) / (2 tanh(b/2))        on |x| <= 1/2, 0 outside           (2)

As b -> 0, g' becomes the rectangle of width 1; as b -> infinity, g becomes the step.
"""

import math

import torch
from torch import Tensor

from snnexp.surrogate.base import Surrogate


class Dspike(Surrogate):
    """Dspike with temperature `b` > 0, else `InvalidValue`.

    The derivative for the default, 3, has its peak at 1.66 and falls to 0.30 at the ends: between rectangle and step.
    """

    b: float

    def __init__(self, b: float = 3.0, spiking: bool = True, **settings: float) -> None:
        super().__init__(spiking=spiking, b=b, **settings)

    def primitive(self, x: Tensor) -> Tensor:
        return torch.tanh(self.b * x.clamp(-0.5, 0.5)) / (2 * math.tanh(self.b / 2)) + 0.5  # Eq. (1)

    def derivative(self, x: Tensor) -> Tensor:
        # Eq. (2) with 1 - tanh^2(z) = 4 sigmoid(2z) sigmoid(-2z): exact in the tails, and several times faster.
        z = 2 * self.b * x
        slope = z.sigmoid() * z.neg_().sigmoid_()
        return slope.mul_(2 * self.b / math.tanh(self.b / 2)).mul_(x.abs() <= 0.5)
