"""Modules over time that keep no state between calls: the base class, recordings, and max pooling of spike trains."""

from typing import Any

import torch
from torch import Tensor, nn


class Stateful(nn.Module):
    """A module over time whose state is passed in and returned, so that nothing is kept between calls."""

    def scan(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Map inputs [T, N, ...] and a state (None: the start) to outputs [T, N, ...] and the state after them."""
        raise NotImplementedError

    def consume(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Run `scan`, which here may reuse the memory of x for the outputs."""
        return self.scan(x, state)


class Frames(Stateful):
    """The frames of a recording, one a step: replaces `TimeMean` at the front of a network, [N, F, ...] -> [N, ...].

    After the last frame the first follows again, so the mean over any multiple of F steps is the recording's mean.
    """

    def scan(self, x: Tensor, state: int | None) -> tuple[Tensor, int]:
        start, dtype = state or 0, torch.get_default_dtype()
        return torch.stack([r[:, (start + t) % r.shape[1]].to(dtype) for t, r in enumerate(x)]), start + len(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over time, [N, ...]."""
        return x.mean(1, dtype=torch.get_default_dtype())


class MaxGate(Stateful):
    """Max pooling of spike trains: a spike passes when it raises the largest spike count in its window.

        y(t) = max over the window of sum_{u <= t} x(u)  -  the same at t - 1

    So the time mean of y is exactly the maximum of the time means, and where the neurons of a window share a threshold,
    y is one spike or none. After the gated pooling of Rueckauer et al., "Conversion of Continuous-Valued Deep Networks
    to Efficient Event-Driven Networks for Image Classification", Frontiers in Neuroscience 2017, which lets the neuron
    with the highest rate so far pass and equals the maximum only in the limit.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def scan(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if state is None:
            total = torch.zeros_like(x[0])
            state = total, torch.zeros_like(self.pool(total))
        total, largest = state
        out = []
        for step in x:
            total = total + step
            now = self.pool(total)
            out.append(now - largest)
            largest = now
        return torch.stack(out), (total, largest)

    def forward(self, x: Tensor) -> Tensor:
        """Pool means over time, [N, ...]."""
        return self.pool(x)  # type: ignore[no-any-return]
