"""The effect of the order of spikes: each site is run again with the same spikes arriving at other times."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from snnexp.conversion.measure import Averages, even_count
from snnexp.conversion.network import Converted
from snnexp.conversion.neuron import ScaledIF, integrator
from snnexp.conversion.walk import CALIBRATION_ROWS
from snnexp.timefold import fold, unfold

Order = Callable[[Tensor, torch.Generator], Tensor]


def as_it_is(train: Tensor, random: torch.Generator) -> Tensor:
    """Return the train unchanged."""
    return train


def steps_permuted(train: Tensor, random: torch.Generator) -> Tensor:
    """Permute the steps, in the same way for all neurons of an image, so that coincident spikes stay coincident."""
    random.manual_seed(random.initial_seed())  # the same order for all sites that are heard
    order = torch.rand(train.shape[:2], generator=random).argsort(0).to(train.device)
    return train.gather(0, order.view(*order.shape, *[1] * (train.dim() - 2)).expand_as(train))


def shuffled(train: Tensor, random: torch.Generator) -> Tensor:
    """Move the spikes of each neuron to random times, independently of other neurons."""
    return train.gather(0, torch.rand(train.shape, generator=random).argsort(0).to(train.device))


def evenly(train: Tensor, random: torch.Generator) -> Tensor:
    """Spread the spikes of each neuron as evenly as T steps allow, with a random phase for each neuron."""
    return _spread(train, torch.rand(train.shape[1:], generator=random).to(train))


def in_step(train: Tensor, random: torch.Generator) -> Tensor:
    """Spread the spikes of each neuron as evenly as T steps allow, all with the same phase."""
    return _spread(train, torch.zeros_like(train[0]))


def _spread(train: Tensor, phase: Tensor) -> Tensor:
    T, theta = len(train), train.amax(0)
    n = (train / theta.clamp(min=torch.finfo(train.dtype).tiny)).sum(0).round()
    by = torch.stack([torch.floor(n * t / T + phase) for t in range(T + 1)])
    by[T] = by[0] + n  # despite rounding
    return by.diff(dim=0) * theta


ORDERS: dict[str, Order] = {
    "as it is": as_it_is,
    "steps permuted": steps_permuted,
    "shuffled": shuffled,
    "evenly": evenly,
    "in step": in_step,
}


@dataclass
class Arrival(Averages):
    """The result for one site and one order of its input spikes, over images and neurons.

    `depth`: sites below it on the longest path; `sources`: sites that feed it directly (several after a residual
    addition); `channels` and `side` of its maps; `over`, `under`: shares of neurons; `uneven`: root mean square of n -
    n*, in spikes; `swing`: root mean square of the current around its mean over time, in units of theta; `trend`: root
    mean square of the difference of the mean currents of the later and the earlier half, in units of theta.
    """

    layer: str
    T: int
    arrival: str
    depth: int
    sources: int
    channels: int
    side: int
    theta: float
    over: float = 0.0
    under: float = 0.0
    uneven: float = 0.0
    swing: float = 0.0
    trend: float = 0.0


@torch.no_grad()
def arrivals(snn: Converted, x: Tensor, T: int, seed: int = 0) -> list[Arrival]:
    """Run every site after the first with each of `ORDERS`, for inputs [N, ...] and T >= 2 steps.

    The layers below a site are unchanged, so the mean input of a neuron is the same in all orders. Raises UserError for
    neurons other than plain integrate-and-fire neurons.
    """
    flow, found = snn.flow, dict[tuple[str, str], Arrival]()
    levels = flow.levels
    device = next(snn.buffers()).device
    for part in torch.split(x, max(1, CALIBRATION_ROWS[device.type] // T)):
        seed += 1
        env, _, _ = snn.simulated(part.to(device), T)
        for site in flow.sites:
            current = site.args[0]
            if not isinstance(current, fx.Node) or current not in flow.timed:
                continue
            others = [n for n in flow.sites if n is not site]
            inside, known = flow.segment([current], [*others, *flow.head])
            sources = [n for n in known if n in others]
            if not sources:  # it hears only frames, which have an order of their own
                continue
            for name, order in ORDERS.items():
                random = torch.Generator().manual_seed(seed)
                values: dict[fx.Node, Any] = {n: env[n] for n in known}
                values |= {n: fold(order(unfold(env[n], T), random)) for n in sources}
                flow.run(inside, values, T)
                neuron, c = integrator(flow, site, "the analysis of arrivals"), unfold(values[current], T)
                layer, side = str(site.target), c.shape[-1] if c.dim() > 3 else 1
                traits = levels[site] - 1, len(sources), c.shape[2], side, float(neuron.theta.mean())
                row = found.setdefault((layer, name), Arrival(layer, T, name, *traits))
                _add(row, neuron, c, len(part) / len(x))
    for row in found.values():
        row.uneven, row.swing, row.trend = math.sqrt(row.uneven), math.sqrt(row.swing), math.sqrt(row.trend)
    return list(found.values())


TRAITS = ("swing", "trend", "depth", "sources", "channels", "side")


def explanations(rows: Sequence[Arrival]) -> list[dict[str, Any]]:
    """Return for each T the rank correlation, over layers, of each of `TRAITS` with the unevenness error in the
    original order.

    Also `kept_first` and `kept_last`, for the first and the last layer: the error in the original order, divided by the
    error with the steps permuted.
    """
    found = []
    for T in sorted({row.T for row in rows}):
        at_T = [row for row in rows if row.T == T]
        at, permuted = ([row for row in at_T if row.arrival == name] for name in ("as it is", "steps permuted"))
        error = [row.uneven for row in at]
        traits = {trait: spearman([getattr(row, trait) for row in at], error) for trait in TRAITS}
        kept = [a.uneven / max(b.uneven, 1e-12) for a, b in zip(at, permuted, strict=True)]
        found.append({"T": T, **traits, "kept_first": kept[0], "kept_last": kept[-1]})
    return found


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation; 0 where one side does not vary."""
    from scipy.stats import spearmanr  # imported late: it takes a second

    return float(spearmanr(a, b).statistic) if min(len(set(a)), len(set(b))) > 1 else 0.0


def _add(row: Arrival, neuron: ScaledIF, c: Tensor, share: float) -> None:
    """Add the means over one batch of currents c [T, n, ...], `share` of all inputs."""
    out, state = neuron.scan(c, None)
    v, n, T = neuron.residual(state), (out.sum(0) / neuron.theta).round(), row.T
    error = n - even_count(n, v, neuron.theta, T)
    scaled = c / neuron.theta
    trend = scaled[(T + 1) // 2 :].mean(0) - scaled[: T // 2].mean(0)
    errors = {"over": (error > 0).float(), "under": (error < 0).float(), "uneven": error.square()}
    row.add(errors | {"swing": scaled.var(0, unbiased=False), "trend": trend.square()}, share)
