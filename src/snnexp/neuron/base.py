"""The base class of firing neurons: their parameters, initial potential and dynamics over time."""

from typing import Any

import torch
from torch import Tensor

from snnexp.errors import boolean, choice, number, require
from snnexp.neuron.backend import FUSED, select
from snnexp.neuron.scan import scan
from snnexp.surrogate import checked_surrogate
from snnexp.timefold import Site, fold, unfold


class SpikingSite(Site):
    """A neuron that emits spikes s in {0, 1} and keeps no state between calls.

        v_temp(t) = decay v(t-1) + c(t);  s = 1 where v_temp >= threshold;
        soft reset: v = v_temp - threshold s;  hard reset: v = v_temp (1 - s) + reset_value s

    `threshold` > 0, `v_init` and `reset_value` are in the units of the membrane potential, which decays toward 0
    whatever `reset_value` is. `detach_reset` keeps the surrogate's gradient out of the reset. `backend` is one of auto,
    torch, triton, cuda (`snnexp.neuron.backend`). Raises `InvalidValue` for other values.

    A subclass defines `decay` and `library`, SpikingJelly's pure multi-step function, which runs its kernels on a GPU.
    """

    def __init__(
        self,
        surrogate: Any,
        threshold: float = 1.0,
        reset: str = "soft",
        reset_value: float = 0.0,
        detach_reset: bool = False,
        v_init: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.surrogate = checked_surrogate(surrogate)
        self.threshold = number("threshold", threshold, "a number > 0", above=0)
        self.reset = choice("reset", reset, ("soft", "hard"))
        self.reset_value = number("reset_value", reset_value, "a number below the threshold", below=self.threshold)
        allowed = "0 with reset=soft, which subtracts the threshold; reset=hard resets to a value"
        require(reset == "hard" or reset_value == 0, "reset_value", reset_value, allowed)
        self.detach_reset = boolean("detach_reset", detach_reset)
        self.v_init = number("v_init", v_init, "a finite number")
        self.backend = select(backend, self.surrogate)

    @property
    def decay(self) -> float | Tensor:
        """alpha: the share of the potential that remains after one step."""
        raise NotImplementedError

    @property
    def v_reset(self) -> float | None:
        """The reset in SpikingJelly's form: None is soft, a number is hard."""
        return self.reset_value if self.reset == "hard" else None

    def library(self, x_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Do the same as `advance` with SpikingJelly's function."""
        raise NotImplementedError

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it would unroll the loop over time
    def advance(self, x_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Map currents [T, N, ...] and potentials v [N, ...] to (spikes [T, N, ...], last potentials [N, ...])."""
        kernels = x_seq.is_cuda and type(self.surrogate) in FUSED
        if kernels or not self.surrogate.spiking:
            return self.library(x_seq, v)
        return scan(x_seq, v, self.decay, self.threshold, self.v_reset, self.surrogate, self.detach_reset)

    def start(self, current: Tensor) -> Tensor:
        """Return `v_init` in the shape of one step [N, ...], in at least float32, even under reduced precision."""
        return torch.full_like(current, self.v_init, dtype=torch.promote_types(current.dtype, torch.float32))

    def step(self, current: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        spikes, v = self.advance(current.unsqueeze(0), self.start(current) if state is None else state)
        return spikes[0].to(current.dtype), v

    def forward(self, x: Tensor) -> Tensor:
        x_seq = unfold(x, self.T)
        return fold(self.advance(x_seq, self.start(x_seq[0]))[0]).to(x.dtype)

    def charged(self, x: Tensor) -> Tensor:
        """Return v_temp, the potentials that are compared with the threshold, [T*N, ...]; without gradients."""
        v, out = None, []
        with torch.no_grad():
            for current in unfold(x, self.T):
                out.append(self.decay * (self.start(current) if v is None else v) + current)
                _, v = self.step(current, v)
        return torch.cat(out)

    def extra_repr(self) -> str:
        reset = f"hard to {self.reset_value}" if self.reset == "hard" else "soft"
        return f"threshold={self.threshold}, reset={reset}, detach_reset={self.detach_reset}, backend={self.backend}"
