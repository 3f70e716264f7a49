"""P(x), the power surrogate of the computer lab (part I, question i; lab setting alpha = 0.5).

    g(x)  = 1/2 sgn(x) |x|^alpha + 1/2     on |x| <= 1, 0 below, 1 above, 0 < alpha < 1   (1)
    g'(x) = alpha/2 |x|^(alpha - 1)        on |x| <= 1, 0 outside                         (2)

g' is unbounded at x = 0, so backward uses min(g', max_gradient), unlike the lab's instructions.
"""

import torch
from torch import Tensor

from snnexp.surrogate.base import Surrogate


class Power(Surrogate):
    """Power surrogate; raises `InvalidValue` unless 0 < alpha < 1 and max_gradient > 0.

    `max_gradient` caps g'. Its default, 10, is ten times the peak of SpikingJelly's default surrogates and at alpha =
    0.5 acts only where |x| < 6.25e-4. `seen` counts the elements that passed through backward and `capped` those that
    the cap changed; `reset_counts()` resets both, as `epoch_metrics()` does after each epoch. Both are part of the
    state, so that a resumed run goes on counting.
    """

    alpha: float
    max_gradient: float
    counts: Tensor  # int64 [capped, seen], on the device, so that counting never waits for it

    def __init__(self, alpha: float = 0.5, max_gradient: float = 10.0, spiking: bool = True) -> None:
        super().__init__(spiking=spiking, alpha=alpha, max_gradient=max_gradient)
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))

    def primitive(self, x: Tensor) -> Tensor:
        return 0.5 * x.sign() * x.abs().clamp(max=1) ** self.alpha + 0.5  # Eq. (1)

    def derivative(self, x: Tensor) -> Tensor:
        return self._uncapped(x).clamp(max=self.max_gradient)

    def gradient(self, x: Tensor) -> Tensor:
        slope = self._uncapped(x)
        self.counts[0] += (slope > self.max_gradient).sum()
        self.counts[1] += slope.numel()
        return slope.clamp_(max=self.max_gradient)

    @property
    def capped(self) -> int:
        """Elements whose derivative the cap changed since the last reset; reading it waits for the device."""
        return int(self.counts[0])

    @property
    def seen(self) -> int:
        """Elements that passed through backward since the last reset."""
        return int(self.counts[1])

    def reset_counts(self) -> None:
        self.counts.zero_()

    def epoch_metrics(self) -> dict[str, float]:
        share = self.capped / max(self.seen, 1)
        self.reset_counts()
        return {"surrogate_capped": share}

    def _uncapped(self, x: Tensor) -> Tensor:
        size = x.abs()
        return (size ** (self.alpha - 1)).mul_(0.5 * self.alpha).mul_(size <= 1)  # Eq. (2); infinite at 0
