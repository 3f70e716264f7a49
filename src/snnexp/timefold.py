"""Time folded into the batch: only this module knows the layout.

Between layers, a tensor of T steps and N samples is `[T*N, ...]`, step-major: rows 0..N-1 are step 0. So every torch
module works unchanged, and only spiking sites unfold time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnexp.errors import integer, number, require


def fold(x: Tensor) -> Tensor:
    """Reshape [T, N, ...] to [T*N, ...]."""
    return x.flatten(0, 1)


def unfold(x: Tensor, steps: int) -> Tensor:
    """Reshape [T*N, ...] to [T, N, ...], as a view."""
    return x.unflatten(0, (steps, -1))  # type: ignore[no-any-return, no-untyped-call]


class Timed(nn.Module):
    """A module that needs the number of steps folded into its batch: the owning `TimeFold` sets `T`."""

    T: int = 1


class Site(Timed):
    """A spiking non-linearity: it unfolds time.

    A subclass defines `step(current, state) -> (output, state)`: current and output are [N, ...], the state is whatever
    it needs (usually the membrane potential, [N, ...]); `state=None` is the start (`v_init`). `forward` maps folded
    [T*N, ...] to [T*N, ...], always from `v_init`: nothing is kept between calls.
    """

    spiking: bool = True  # False: its outputs are not spikes and are not counted

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for current in unfold(x, self.T):
            y, state = self.step(current, state)
            out.append(y)
        return torch.cat(out)


class Dropout(Timed):
    """Zero each entry with probability `p` in training, the same entries at all steps (masks drawn per step would
    average out over time). [T*N, ...] -> [T*N, ...]; 0 <= `p` < 1, else `InvalidValue`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = number("dropout", p, "a share of at least 0 and below 1", at_least=0, below=1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        steps = unfold(x, self.T)
        return fold(steps * F.dropout(torch.ones_like(steps[0]), self.p))


class Normalize(nn.Module):
    """Map images in 0..255, any dtype, [N, C, H, W], to (x/255 - mean)/std per channel, in the buffers' precision.

    `mean` and `std` have C values each, in units of 255, std > 0; else `InvalidValue`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        require(len(std) == len(mean) and all(s > 0 for s in std), "std", list(std), "as many numbers > 0 as mean")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 / (255 * self.std)
        return (x * scale).sub_(self.mean / self.std)


@contextmanager
def observed(modules: Mapping[str, nn.Module], note: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call `note(name, input, output)` after each forward pass of one of `modules` inside the block."""

    def hook(name: str) -> Any:
        return lambda _module, inputs, output: note(name, inputs[0], output)

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class TimeMean(nn.Module):
    """Map [N, T, ...], any dtype, to its mean over time [N, ...], so that a network without time sees one image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, dtype=torch.get_default_dtype())


class TimeFold(nn.Module):
    """The only owner of T: it feeds a network of time-folded layers and returns its output per step.

    `temporal` inputs are [N, T, ...] (event frames, batch first, any dtype); others are [N, ...], pass through `front`
    once (e.g. `Normalize`) and are shown at each step. Returns [T, N, ...].

    Setting `T` reaches every site; it must be an integer >= 1 (else `InvalidValue`). A network without sites that sees
    the same input at each step would repeat the same work T times: it has no time, and its T is always 1.
    """

    def __init__(self, network: nn.Module, T: int, *, temporal: bool, front: nn.Module | None = None) -> None:
        super().__init__()
        self.front, self.network, self.temporal = front or nn.Identity(), network, temporal
        self.T = T

    @property
    def T(self) -> int:
        return self._T

    @T.setter
    def T(self, steps: int) -> None:
        steps = integer("T", steps, at_least=1)
        self._T = steps if self.temporal or self.sites() else 1
        for module in self.network.modules():
            if isinstance(module, Timed):
                module.T = self._T

    def sites(self) -> dict[str, Site]:
        """Return the sites by their name in the network, in order of definition."""
        return {name: m for name, m in self.network.named_modules() if isinstance(m, Site)}

    def folded(self, x: Tensor) -> Tensor:
        """Return the input of the network inside, [T*N, ...]."""
        require(not self.temporal or x.shape[1] == self.T, "T", self.T, f"{x.shape[1]}, the steps of the input")
        x = self.front(x)
        steps = x.transpose(0, 1) if self.temporal else x.expand(self.T, *x.shape)  # -> [T, N, ...]
        weight = next(self.network.parameters(), None)
        return fold(steps).to(torch.float32 if weight is None else weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return unfold(self.network(self.folded(x)), self.T)
