"""The placed neurons of each code: integrate-and-fire neurons for the rate code, and few-spike neurons."""

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from snnexp.conversion.flow import Flow
from snnexp.conversion.measure import split_error
from snnexp.conversion.network import Converted, Decoded
from snnexp.conversion.placed import Placed
from snnexp.conversion.stateful import Frames, MaxGate  # saved networks name them here
from snnexp.conversion.trains import mean_over_time, packed, unpacked
from snnexp.conversion.vocabulary import NUMBERS
from snnexp.errors import InvalidValue, UserError
from snnexp.few_spike.table import Coefficients, decoded, spikes
from snnexp.timefold import fold

__all__ = ["FewSpike", "Frames", "MaxGate", "ScaledIF", "integrator"]


class ScaledIF(Placed):
    """Integrate-and-fire neuron with soft reset that emits `theta` for a spike, so that the time mean of its output
    approximates the activation that it replaces, in the ANN's units.

        v(t) = v(t-1) + c(t) + bias - theta s(t);  s(t) = 1 where v(t-1) + c(t) + bias >= theta

    `theta` > 0 [1, C, 1, ...], the start `v_init` and `bias` (the shape of theta, or one per neuron [1, C, H, W]) are
    buffers. Loading a state_dict may change their shapes. Raises InvalidValue for a threshold that is not positive and
    finite.
    """

    network = Converted
    values = ("theta", "v_init", "bias")
    integrates = True
    advice = (
        "more steps (timesteps), conversion=adaptive_threshold, a threshold for each channel "
        "(conversion.per_channel=true), or corrections (task=calibrate calibration=best)"
    )
    theta: Tensor
    v_init: Tensor

    def __init__(self, theta: Tensor, v_init: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("theta", theta)
        self.check()
        self.register_buffer("v_init", torch.zeros_like(theta) if v_init is None else v_init)
        self.register_buffer("bias", torch.zeros_like(theta) if bias is None else bias)

    def check(self) -> None:
        if not bool((self.theta > 0).all() and self.theta.isfinite().all()):
            raise InvalidValue("theta", self.theta.flatten()[:3].tolist(), "above 0 and finite")

    @property
    def threshold(self) -> float:
        return float(self.theta.mean())

    def start(self, current: Tensor) -> Tensor:
        """Return v(0) as a new tensor in the shape of one step, [N, ...]."""
        return torch.zeros_like(current) + self.v_init

    def scan(self, x: Tensor, state: Tensor | None, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run all steps (see `Stateful.scan`); the output is written to `out`, which may be x."""
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

    def consume(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.scan(x, state, x)

    def residual(self, state: Any) -> Tensor:
        """Return v(T) for a start at `v_init`: v_init + the sum of all inputs - the sum of all outputs."""
        return state  # type: ignore[no-any-return]

    def packed(self, emitted: Tensor) -> Tensor:
        return packed(emitted)

    def recalled(self, stored: Tensor, T: int, mean: bool) -> Tensor:
        train = unpacked(stored, T, self.theta.dtype)
        return (mean_over_time(train) if mean else fold(train)).mul_(self.theta)

    def correctable(self, a: Tensor, phi: Tensor) -> Tensor:
        return (a - phi) * ((phi > 0) | (a > 0))  # straight-through, but for silent neurons that should be silent

    def traits(self, c: Tensor, z: Tensor, phi: Tensor, state: Any, T: int, f: nn.Module) -> dict[str, Tensor]:
        v, theta = self.residual(state), self.theta
        count = (phi * T / theta).round()
        parts = split_error(c, z, v, count, theta, T, f)
        over, under = (v < 0) & (count > 0), (v >= theta) & (count < T)
        off = parts["unevenness"] * T / theta
        means = {"ann_mean": f(z), "snn_mean": phi, "threshold": theta, "firing_rate": count / T, "silent": count == 0}
        means |= {"over": over, "under": under, "zeros": (v < 0) & ~over, "saturated": (v >= theta) & ~under}
        means |= {"over_spikes": off.clamp(min=0), "under_spikes": -off.clamp(max=0)}
        squares = {name: part.square() for name, part in parts.items()}
        return {name: value.float() for name, value in means.items()} | squares

    def extra_repr(self) -> str:
        return f"theta={float(self.theta.mean()):.4g} (mean of {self.theta.numel()})"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for name in self.values:
            if (value := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(value, device=self.theta.device, dtype=self.theta.dtype))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class FewSpike(Placed):
    """Few-spike neuron: it receives its whole input at once, fires in the K steps of its slot, and passes on the number
    that its spikes encode (`snnexp.few_spike.table`), an approximation of the activation.

    `T`, `h`, `d` [K, 1, C or 1, 1, ...] and `bias` [1, C, 1, ...], which is added to the input, are buffers.
    """

    network = Decoded
    vocabulary = NUMBERS
    stepwise = False
    advice = (
        "more steps of a layer (timesteps), a table for each channel (conversion.per_channel=true), or corrections "
        "(task=calibrate calibration=light)"
    )
    T: Tensor
    h: Tensor
    d: Tensor

    def __init__(self, table: Coefficients, bias: Tensor) -> None:
        super().__init__()
        for name, values in table._asdict().items():
            self.register_buffer(name, values)
        self.register_buffer("bias", bias)

    @property
    def table(self) -> Coefficients:
        """The coefficients of all steps."""
        return Coefficients(self.T, self.h, self.d)

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers that the spikes encode for inputs [N, C, ...]."""
        return decoded(x + self.bias, self.table)

    def spikes(self, x: Tensor) -> Tensor:
        """Return the K spikes of each neuron for inputs [N, C, ...]: [K, N, C, ...]."""
        return torch.stack(list(spikes(x + self.bias, self.table)))

    def traits(self, c: Tensor, z: Tensor, phi: Tensor, state: Any, T: int, f: nn.Module) -> dict[str, Tensor]:
        """Return the columns of `Placed.traits`; `state` holds the spike counts."""
        own = {"threshold": self.T.amax(0), "firing_rate": state / T, "silent": (state == 0).float()}
        return super().traits(c, z, phi, state, T, f) | own

    def extra_repr(self) -> str:
        return f"K={len(self.T)}"


def integrator(flow: Flow, site: fx.Node, what: str) -> ScaledIF:
    """Return the plain integrate-and-fire neuron at `site`; `what` needs it and is named in errors. Raises UserError
    for another neuron."""
    neuron = flow.neuron(site)
    if not neuron.integrates:
        other = f"layer {site.target} has a {type(neuron).__name__}: choose another conversion"
        raise UserError(f"{what} takes plain integrate-and-fire neurons, and {other}")
    return cast(ScaledIF, neuron)
