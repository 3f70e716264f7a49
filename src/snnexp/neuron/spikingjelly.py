"""Any SpikingJelly neuron as a site, `neuron=spikingjelly`: it keeps its own equations, but no state between calls."""

from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor

from snnexp.errors import require
from snnexp.surrogate import checked_surrogate
from snnexp.surrogate.limits import NOT_HEAVISIDE
from snnexp.timefold import Site, fold, unfold


class Wrapped(Site):
    """A SpikingJelly `node` run as a pure function: every call starts from its initial state and leaves that unchanged.

    [T*N, ...] -> [T*N, ...]; the state of `step` is the tuple of the node's memories. Raises `InvalidValue` if `node`
    is not a SpikingJelly neuron or its surrogate is rejected (`snnexp.surrogate.checked_surrogate`).
    """

    def __init__(self, node: Any) -> None:
        super().__init__()
        stateful = "a neuron of spikingjelly.activation_based.neuron that keeps a state"
        require(isinstance(node, base.MemoryModule), "node", node, stateful)
        self.node = node
        if self.surrogate is not None and type(self.surrogate).__name__ not in NOT_HEAVISIDE:  # of ILIF, it counts
            checked_surrogate(self.surrogate)
        node.reset()

    @property
    def surrogate(self) -> Any:
        """The node's own surrogate, or None."""
        return getattr(self.node, "surrogate_function", None)

    def step(self, current: Tensor, state: tuple[Any, ...] | None) -> tuple[Tensor, tuple[Any, ...]]:
        return self._run(current, state, "s")  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        if "m" not in self.node.supported_step_mode():
            return super().forward(x)
        return fold(self._run(unfold(x, self.T), None, "m")[0])

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it swaps the node's memories
    def _run(self, x: Tensor, state: tuple[Any, ...] | None, step_mode: str) -> tuple[Tensor, tuple[Any, ...]]:
        self.node.step_mode = step_mode
        start = tuple(base.extract_memories(self.node))
        (y, *_), after = base.to_functional_forward(self.node)((x,), start if state is None else state)
        alike = f"a neuron whose output has its input's shape: from {tuple(x.shape)} it made {tuple(y.shape)}"
        require(y.shape == x.shape, "node", type(self.node).__name__, alike)
        return y, after
