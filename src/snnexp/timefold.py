"""Time folded into the batch: the one place that knows the layout.

Between layers a tensor of T steps and N samples is `[T*N, ...]`, step-major: rows 0..N-1 are step 0. So every torch
module works unchanged, and only spiking sites unfold time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnexp.errors import integer, require


def fold(x: Tensor) -> Tensor:
    """[T, N, ...] -> [T*N, ...]."""
    return x.flatten(0, 1)


def unfold(x: Tensor, steps: int) -> Tensor:
    """[T*N, ...] -> [T, N, ...]; a view."""
    return x.unflatten(0, (steps, -1))  # type: ignore[no-any-return, no-untyped-call]


class Site(nn.Module):
    """A spiking non-linearity: the only kind of module that sees time.

    A subclass defines `step(current, state) -> (output, state)`: current and output [N, ...], the state whatever it
    needs (most often the membrane potential, [N, ...]); `state=None` means the start (`v_init`). `forward` maps folded
    [T*N, ...] to [T*N, ...], always from `v_init`: nothing is kept between calls. `T` is set by the `TimeFold` that
    owns the network.
    """

    T: int = 1
    spiking: bool = True  # False: what it emits are no spikes, and not counted as such

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for current in unfold(x, self.T):
            y, state = self.step(current, state)
            out.append(y)
        return torch.cat(out)


class TimeFold(nn.Module):
    """The one owner of T: feeds a network of time-folded layers and returns its output per step.

    `temporal` inputs are [N, T, ...] (event frames, batch first, any dtype); others are [N, ...] and are shown at each
    step. Returns [T, N, ...]. Assigning `T` reaches every site; it must be an integer >= 1 (else `InvalidValue`).
    """

    def __init__(self, network: nn.Module, T: int, *, temporal: bool) -> None:
        super().__init__()
        self.network, self.temporal = network, temporal
        self.T = T

    @property
    def T(self) -> int:
        return self._T

    @T.setter
    def T(self, steps: int) -> None:
        self._T = integer("T", steps, at_least=1)
        for site in self.sites().values():
            site.T = steps

    def sites(self) -> dict[str, Site]:
        """Sites by their name in the network, in the order of definition."""
        return {name: m for name, m in self.network.named_modules() if isinstance(m, Site)}

    def forward(self, x: Tensor) -> Tensor:
        require(not self.temporal or x.shape[1] == self.T, "T", self.T, f"{x.shape[1]}, the steps of the input")
        steps = x.transpose(0, 1) if self.temporal else x.expand(self.T, *x.shape)  # -> [T, N, ...]
        weight = next(self.network.parameters(), None)
        return unfold(self.network(fold(steps).to(torch.float32 if weight is None else weight.dtype)), self.T)
