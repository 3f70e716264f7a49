"""Networks of still images, applied to each frame of a recording."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def stills(x: Tensor) -> Tensor:
    """Return all frames of recordings [N, F, ...], any dtype, as images [N F, ...]."""
    return x.flatten(0, 1).to(torch.get_default_dtype())


class PerFrame(nn.Module):
    """A network that is run on each frame from its initial state; outputs are averaged: [N, F, ...] -> [N, K].

    `network` is an ANN, or a `Converted`, which takes F times the steps of one frame.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self._mean(self.network(stills(x)), x)

    def at(self, x: Tensor, steps: Sequence[int]) -> list[Any]:
        """Return the mean outputs after each of `steps` per frame, as `Converted.at` does for images."""
        return [self._mean(y, x) for y in self.network.at(stills(x), steps)]  # type: ignore[operator]

    @staticmethod
    def _mean(y: Tensor, x: Tensor) -> Tensor:
        return y.unflatten(0, x.shape[:2]).mean(1)  # type: ignore[no-untyped-call, no-any-return]
