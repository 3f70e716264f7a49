"""Coefficients of few-spike neurons, and what a neuron with them does.

Stoeckl and Maass, "Optimized spiking neurons can classify images with high accuracy through temporal coding with two
spikes", Nature Machine Intelligence 2021. A neuron gets its input x once, and then for t = 1..K

    z(t) = 1 where v(t) >= T(t), else 0,    v(1) = x                fire, at equality too       (1)
    v(t+1) = v(t) - h(t) z(t)                                       reset                       (2)
    y = sum over t of d(t) z(t)                                     what the spikes mean        (3)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from snnexp.dynamics import fires
from snnexp.errors import InvalidValue, UserError

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "softplus": F.softplus,
    "selu": F.selu,
    "celu": F.celu,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "logsigmoid": F.logsigmoid,
    "hardtanh": F.hardtanh,
}
RANGES: dict[str, tuple[tuple[float, float], ...]] = {  # of the shipped coefficients; the first is the talk's
    "relu": ((0.0, 25.0),),
    "silu": ((-8.0, 12.0), (-6.0, 6.0), (-4.0, 3.0), (-1.0, 1.0)),
    "sigmoid": ((-10.0, 10.0), (-5.0, 5.0)),
    "gelu": ((-4.0, 10.0), (-4.0, 4.0)),
    "tanh": ((-4.0, 4.0), (-2.0, 2.0)),
    "hardswish": ((-4.0, 10.0), (-4.0, 4.0)),
    "hardsigmoid": ((-4.0, 4.0),),
}
SHIPPED = Path(__file__).parent / "coefficients"
POINTS = 10**6  # uniformly spaced, at which errors are measured


class Table(NamedTuple):
    """`T`, `h`, `d` as above: [K], or [K, 1, C, 1, ...] with coefficients for each channel of inputs [N, C, ...]."""

    T: Tensor
    h: Tensor
    d: Tensor

    @property
    def K(self) -> int:
        return len(self.T)


@dataclass(frozen=True)
class Fitted:
    """A table for `activation` on `range`, with its mean squared and largest error and mean spikes, measured at a
    million uniformly spaced points in float64."""

    activation: str
    range: tuple[float, float]
    table: Table
    mse: float
    largest: float
    spikes: float


def spikes(x: Tensor, table: Table) -> Iterable[Tensor]:
    """z(t) for t = 1..K, each in the shape and dtype of x [N, ...]."""
    v = x.clone()
    for T, h in zip(table.T, table.h, strict=True):
        z = fires(v, T)  # Eq. (1)
        v -= h * z  # Eq. (2)
        yield z


def decoded(x: Tensor, table: Table) -> Tensor:
    """y of Eq. (3), shape of x."""
    y = torch.zeros_like(x)
    for z, d in zip(spikes(x, table), table.d, strict=True):
        y += d * z
    return y


def relu(K: int, top: float | Tensor) -> Table:
    """ReLU on [0, top), in closed form: h = d = top 2^-t, so the spikes are the binary digits of x / (top 2^-K).

    The thresholds lie half a step, top 2^-(K+1), below h: it rounds to the grid where the talk's T = h cuts off, which
    halves the largest error and leaves no mean error. `top`: a number, or [1, C, 1, ...] for each channel.
    """
    top = torch.as_tensor(top)
    h = 2.0 ** -torch.arange(1, K + 1, dtype=top.dtype, device=top.device).view(-1, *[1] * top.dim()) * top
    return Table(h - h[-1:] / 2, h, h)


def measured(activation: str, interval: tuple[float, float], table: Table, points: int = POINTS) -> Fitted:
    """`table` with its errors at so many uniformly spaced points."""
    table = Table(*(part.double() for part in table))
    x = torch.linspace(*interval, points, dtype=torch.float64)
    y, count = torch.zeros_like(x), torch.zeros_like(x)
    for z, d in zip(spikes(x, table), table.d, strict=True):
        y += d * z
        count += z
    error = y - FUNCTIONS[activation](x)
    return Fitted(
        activation, interval, table, float(error.square().mean()), float(error.abs().max()), float(count.mean())
    )


def save(tables: Sequence[Fitted], path: Path) -> None:
    """Write tables of one activation as YAML, a table a line."""
    lines = [f"activation: {tables[0].activation}", "tables:"]
    for fit in tables:
        numbers = {name: [float(f"{v:.9g}") for v in part.tolist()] for name, part in fit.table._asdict().items()}
        errors = f"mse: {fit.mse:.4g}, largest: {fit.largest:.4g}, spikes: {fit.spikes:.4g}"
        lines.append(
            f"- {{K: {fit.table.K}, range: {list(fit.range)}, {errors}, "
            + ", ".join(f"{name}: {values}" for name, values in numbers.items())
            + "}"
        )
    path.write_text("\n".join(lines) + "\n")


def load(activation: str, folder: Path | None = None) -> list[Fitted]:
    """The tables of `activation` in `folder`/<activation>.yaml, or those shipped; none if there is no such file.

    Raises UserError for a file that holds something else.
    """
    path = (folder or SHIPPED) / f"{activation}.yaml"
    if not path.exists():
        return []
    try:
        content = yaml.safe_load(path.read_text())
        found = [
            Fitted(
                content["activation"],
                (float(t["range"][0]), float(t["range"][1])),
                Table(*(torch.tensor(t[name], dtype=torch.float64) for name in Table._fields)),
                float(t["mse"]),
                float(t["largest"]),
                float(t["spikes"]),
            )
            for t in content["tables"]
        ]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path} holds no few-spike coefficients as task=fit_few_spike writes them: {error}") from error
    for fit in found:
        if not len(fit.table.T) == len(fit.table.h) == len(fit.table.d) > 0 or not all(
            part.isfinite().all() for part in fit.table
        ):
            raise UserError(f"{path}: T, h and d must be lists of K finite numbers each")
    return found


def known(activation: str) -> Callable[[Tensor], Tensor]:
    """The function of that name. Raises InvalidValue."""
    if activation not in FUNCTIONS:
        raise InvalidValue("activation", activation, "one of " + ", ".join(FUNCTIONS))
    return FUNCTIONS[activation]
