"""The coefficients of few-spike neurons, and the neuron's equations.

Stoeckl and Maass, "Optimized spiking neurons can classify images with high accuracy through temporal coding with two
spikes", Nature Machine Intelligence 2021. A neuron gets its input x once, and then for t = 1..K

    z(t) = 1 where v(t) >= T(t), else 0,    v(1) = x                fire, also at equality      (1)
    v(t+1) = v(t) - h(t) z(t)                                       reset                       (2)
    y = sum over t of d(t) z(t)                                     the number encoded          (3)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor

from snnexp.activations import Interval, named
from snnexp.dynamics import fires
from snnexp.errors import UserError
from snnexp.files import replace

SHIPPED = Path(__file__).parent / "coefficients"
POINTS = 10**6  # uniformly spaced inputs at which errors are measured


class Coefficients(NamedTuple):
    """The coefficients `T`, `h`, `d`: [K], or [K, 1, C, 1, ...] for each channel of inputs [N, C, ...]."""

    T: Tensor
    h: Tensor
    d: Tensor

    @property
    def K(self) -> int:
        return len(self.T)


@dataclass(frozen=True)
class Fitted:
    """A table for `activation` on `range`, with its mean squared error, largest error and mean number of spikes,
    measured in float64 at a million uniformly spaced inputs."""

    activation: str
    range: Interval
    table: Coefficients
    mse: float
    largest: float
    spikes: float


def spikes(x: Tensor, table: Coefficients) -> Iterable[Tensor]:
    """Yield the spikes z(t) for t = 1..K, each in the shape and dtype of x [N, ...]."""
    v = x.clone()
    for T, h in zip(table.T, table.h, strict=True):
        z = fires(v, T)  # Eq. (1)
        v -= h * z  # Eq. (2)
        yield z


def decoded(x: Tensor, table: Coefficients) -> Tensor:
    """Return y of Eq. (3) for inputs x, in the shape of x."""
    y = torch.zeros_like(x)
    for z, d in zip(spikes(x, table), table.d, strict=True):
        y += d * z
    return y


def relu(K: int, top: float | Tensor, rounding: str = "nearest") -> Coefficients:
    """Return the table of ReLU on [0, top), in closed form.

    h = d = top 2^-t, so the spikes are the binary digits of x / (top 2^-K). With `rounding` "down", T = h as in the
    paper. With "nearest", the thresholds are half a step, top 2^-(K+1), below h: the neuron rounds to the nearest grid
    point, which halves the largest error and removes the mean error. `top`: a number, or [1, C, 1, ...] by channel.
    """
    top = torch.as_tensor(top)
    h = 2.0 ** -torch.arange(1, K + 1, dtype=top.dtype, device=top.device).view(-1, *[1] * top.dim()) * top
    return Coefficients(h if rounding == "down" else h - h[-1:] / 2, h, h)


def measured(activation: str, interval: Interval, table: Coefficients, points: int = POINTS) -> Fitted:
    """Return `table` with its errors at `points` uniformly spaced inputs."""
    table = Coefficients(*(part.double() for part in table))
    x = torch.linspace(*interval, points, dtype=torch.float64)
    y, count = torch.zeros_like(x), torch.zeros_like(x)
    for z, d in zip(spikes(x, table), table.d, strict=True):
        y += d * z
        count += z
    error = y - named(activation).function(x)
    found = float(error.square().mean()), float(error.abs().max()), float(count.mean())
    return Fitted(activation, interval, table, *found)


def save_tables(tables: Sequence[Fitted], path: Path) -> None:
    """Write the tables of one activation as YAML, one table a line."""
    lines = [f"activation: {tables[0].activation}", "tables:"]
    for fit in tables:
        errors = f"mse: {fit.mse:.4g}, largest: {fit.largest:.4g}, spikes: {fit.spikes:.4g}"
        parts = [f"{name}: {[float(f'{v:.9g}') for v in part.tolist()]}" for name, part in fit.table._asdict().items()]
        lines.append(f"- {{K: {fit.table.K}, range: {list(fit.range)}, {errors}, {', '.join(parts)}}}")
    replace(path, "\n".join(lines) + "\n")


def load_tables(activation: str, folder: Path | None = None) -> list[Fitted]:
    """Return the tables of `activation` in `folder`/<activation>.yaml (None: the shipped ones); [] without such a file.

    Raises UserError for a file with other content.
    """
    path = (folder or SHIPPED) / f"{activation}.yaml"
    if not path.exists():
        return []
    try:
        content, found = yaml.safe_load(path.read_text(encoding="utf-8")), []
        for t in content["tables"]:
            table = Coefficients(*(torch.tensor(t[name], dtype=torch.float64) for name in Coefficients._fields))
            errors = (float(t[name]) for name in ("mse", "largest", "spikes"))
            interval = float(t["range"][0]), float(t["range"][1])
            found.append(Fitted(content["activation"], interval, table, *errors))
    except (yaml.YAMLError, KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path} holds no few-spike coefficients as task=fit_few_spike writes them: {error}") from error
    for fit in found:
        alike = len(fit.table.T) == len(fit.table.h) == len(fit.table.d) > 0
        if not alike or not all(part.isfinite().all() for part in fit.table):
            raise UserError(f"{path}: T, h and d must be lists of K finite numbers each")
    return found
