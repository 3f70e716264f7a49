"""Losses over the output of every time step: outputs [T, N, K], targets [N] int64 -> scalar.

With every loss, the prediction is the class whose output, averaged over time, is highest.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from snnexp.errors import number


class MSERate(nn.Module):
    """Mean squared error of the mean output over time (the firing rate) against the one-hot label."""

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        rate = outputs.mean(0)  # [T, N, K] -> [N, K]
        return F.mse_loss(rate, F.one_hot(target, rate.shape[1]).to(rate.dtype))


class CrossEntropy(nn.Module):
    """Cross-entropy of the logits `scale` x mean output over time."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = number("scale", scale, "a number > 0", above=0)

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(self.scale * outputs.mean(0), target)


class TET(nn.Module):
    """Temporal efficient training (Deng et al., ICLR 2022, eqs. 9 to 11):
    (1 - lamb) * mean over t of CE(O(t), y) + lamb * mean over t of MSE(O(t), target)."""

    def __init__(self, lamb: float = 0.05, target: float = 1.0) -> None:
        super().__init__()
        self.lamb = number("lamb", lamb, "a number from 0 to 1", at_least=0, at_most=1)
        self.target = number("target", target, "a number")

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        steps = outputs.shape[0]
        each = F.cross_entropy(outputs.flatten(0, 1), target.repeat(steps))  # averaged over steps and samples
        return (1 - self.lamb) * each + self.lamb * (outputs - self.target).square().mean()
