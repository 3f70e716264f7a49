"""What a converted network has in place of activations and max pooling: modules with a state that is passed along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnexp.errors import InvalidValue
from snnexp.few_spike.table import Table, decoded, spikes


class Stateful(nn.Module):
    """A module over time whose state goes in and comes out, so that nothing is kept between calls. `site`: it stands
    for an activation."""

    site = False

    def scan(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """[T, N, ...] from `state` (None: the start) to ([T, N, ...], the state after)."""
        raise NotImplementedError


class ScaledIF(Stateful):
    """Integrate-and-fire neuron with soft reset that emits `theta` for a spike, so that the time mean of what it emits
    approximates the activation it stands for, in the ANN's units.

        v(t) = v(t-1) + c(t) + bias - theta s(t);  s(t) = 1 where v(t-1) + c(t) + bias >= theta

    `theta` > 0 [1, C, 1, ...], the start `v_init` and `bias` (the shape of theta, or one per neuron [1, C, H, W]) are
    buffers. A state_dict brings its own shapes along. Raises InvalidValue for a threshold that is not positive.
    """

    site = True
    theta: Tensor
    v_init: Tensor
    bias: Tensor

    def __init__(self, theta: Tensor, v_init: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        if not bool((theta > 0).all() and theta.isfinite().all()):
            raise InvalidValue("theta", theta.flatten()[:3].tolist(), "above 0 and finite")
        self.register_buffer("theta", theta)
        self.register_buffer("v_init", torch.zeros_like(theta) if v_init is None else v_init)
        self.register_buffer("bias", torch.zeros_like(theta) if bias is None else bias)

    def changed(
        self, theta: Tensor | None = None, v_init: Tensor | None = None, bias: Tensor | None = None
    ) -> ScaledIF:
        """A copy with other values."""
        return ScaledIF(
            self.theta if theta is None else theta,
            self.v_init if v_init is None else v_init,
            self.bias if bias is None else bias,
        )

    def mixed(self, better: Tensor, other: ScaledIF | FewSpike | Readout) -> ScaledIF:
        """A neuron with the values of `other` in the channels `better` [C]."""
        assert isinstance(other, ScaledIF)
        at = better.view(1, -1, *[1] * (self.theta.dim() - 2))
        pairs = ((other.theta, self.theta), (other.v_init, self.v_init), (other.bias, self.bias))
        return ScaledIF(*(old if new is old else torch.where(at, new, old) for new, old in pairs))

    def start(self, current: Tensor) -> Tensor:
        """v(0) in the shape of one step, [N, ...]; new memory."""
        return torch.zeros_like(current) + self.v_init

    def scan(self, x: Tensor, state: Tensor | None, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Stateful.scan`; `out`, which may be x, is written to."""
        v = self.start(x[0]) if state is None else state
        out = torch.empty_like(x) if out is None else out
        biased = bool(self.bias.any())
        for current, s in zip(x, out, strict=True):
            v += current
            if biased:
                v += self.bias
            torch.ge(v, self.theta, out=s)
            s *= self.theta
            v -= s
        return out, v

    def residual(self, state: Any) -> Tensor:
        """v(T) as from a start at `v_init`: v_init + the sum of all inputs - the sum of what was emitted."""
        return state  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"theta={float(self.theta.mean()):.4g} (mean of {self.theta.numel()})"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for name in ("theta", "v_init", "bias"):
            if (value := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(value, device=self.theta.device, dtype=self.theta.dtype))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class FewSpike(Stateful):
    """Few-spike neuron: its time is its own. It gets its whole input at once, fires in the K steps of its slot, and
    what it hands on, `forward`, is what its spikes mean (`snnexp.few_spike.table`), an approximation of the activation.

    `T`, `h`, `d` [K, 1, C or 1, 1, ...] and `bias` [1, C, 1, ...], which is added to the input, are buffers.
    """

    site = True
    T: Tensor
    h: Tensor
    d: Tensor
    bias: Tensor

    def __init__(self, table: Table, bias: Tensor) -> None:
        super().__init__()
        for name, values in table._asdict().items():
            self.register_buffer(name, values)
        self.register_buffer("bias", bias)

    @property
    def table(self) -> Table:
        return Table(self.T, self.h, self.d)

    @property
    def theta(self) -> Tensor:
        """The thresholds of all steps."""
        return self.T

    def changed(self, bias: Tensor) -> FewSpike:
        """A copy with another bias."""
        return FewSpike(self.table, bias)

    def mixed(self, better: Tensor, other: ScaledIF | FewSpike | Readout) -> FewSpike:
        """With the bias of `other` in the channels `better` [C]."""
        return self.changed(torch.where(better.view(1, -1, *[1] * (self.bias.dim() - 2)), other.bias, self.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [N, C, ...] to what the spikes mean."""
        return decoded(x + self.bias, self.table)

    def spikes(self, x: Tensor) -> Tensor:
        """The K spikes of each neuron: [N, C, ...] to [K, N, C, ...]."""
        return torch.stack(list(spikes(x + self.bias, self.table)))

    def extra_repr(self) -> str:
        return f"K={len(self.T)}"


class Readout(nn.Module):
    """What the walk has at the output, where nothing fires: a correction `bias` [1, C, ...] to the mean."""

    bias: Tensor

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias", bias)

    def changed(self, bias: Tensor) -> Readout:
        """A copy with another bias."""
        return Readout(bias)

    def mixed(self, better: Tensor, other: ScaledIF | FewSpike | Readout) -> Readout:
        """With the bias of `other` in the channels `better` [C]."""
        return Readout(torch.where(better.view(1, -1, *[1] * (other.bias.dim() - 2)), other.bias, self.bias))


class Frames(Stateful):
    """A recording, frame by frame: stands for `TimeMean` in front of a network, [N, F, ...] -> [N, ...] a step.

    After the last frame the first comes again, so that the mean over any multiple of F steps is the recording's.
    """

    def scan(self, x: Tensor, state: int | None) -> tuple[Tensor, int]:
        start, dtype = state or 0, torch.get_default_dtype()
        return torch.stack([r[:, (start + t) % r.shape[1]].to(dtype) for t, r in enumerate(x)]), start + len(x)

    def forward(self, x: Tensor) -> Tensor:
        """The mean over time, [N, ...]."""
        return x.mean(1, dtype=torch.get_default_dtype())


class MaxGate(Stateful):
    """Max pooling of trains: a spike passes when it raises the largest count in its window so far.

        y(t) = max over the window of sum_{u <= t} x(u)  -  the same at t - 1

    So the time mean of y is exactly the maximum of the time means, and where the window's neurons share a threshold,
    y is one spike or none. After the gated pooling of Rueckauer et al., "Conversion of Continuous-Valued Deep Networks
    to Efficient Event-Driven Networks for Image Classification", Frontiers in Neuroscience 2017, which lets through
    the neuron with the highest rate so far and equals it only in the limit.
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
        """What it does to means over time, [N, ...]."""
        return self.pool(x)  # type: ignore[no-any-return]
