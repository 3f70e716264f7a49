"""Choose the temperatures of `surrogate=dspike_adaptive` during training, by finite differences."""

import logging
import time
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from torch import Tensor, nn

from snnexp.analysis.finite_difference import Fidelity, Probe, compare, layers, sample
from snnexp.analysis.style import BLUE, GREY, ORANGE, panels, styles, whole
from snnexp.dataset.base import Split
from snnexp.errors import InvalidValue
from snnexp.surrogate.dspike import Dspike
from snnexp.surrogate.dspike_adaptive import AdaptiveDspike, Choice
from snnexp.timefold import TimeFold
from snnexp.training import Progress, mix

log = logging.getLogger(__name__)


def adaptive(net: nn.Module) -> list[AdaptiveDspike]:
    """Return the adaptive surrogates of `net`, after naming their sites as in TimeFold's network."""
    found = []
    for name, module in net.named_modules():
        if isinstance(surrogate := getattr(module, "surrogate", None), AdaptiveDspike):
            surrogate.site = name.removeprefix("network.")
            found.append(surrogate)
    return found


def adapt(
    fabric: Fabric, net: TimeFold, split: Split, loss: nn.Module, seed: int, progress: Progress, steps: int
) -> None:
    """Choose temperatures before a training step, if that is due: rank 0 does it on training samples for all ranks."""
    surrogates = adaptive(net)
    if not surrogates:
        return
    every, done = surrogates[0].every or steps, progress.epoch * steps + progress.step
    if done % every:
        return
    if fabric.is_global_zero:
        choose(net, surrogates, split, loss, mix(seed, done), fabric.device)
    states = fabric.broadcast([surrogate.get_extra_state() for surrogate in surrogates])
    for surrogate, state in zip(surrogates, states, strict=True):
        surrogate.set_extra_state(state)


def choose(
    net: TimeFold, surrogates: Sequence[AdaptiveDspike], split: Split, loss: nn.Module, seed: int, device: torch.device
) -> None:
    """Set every `b` to the candidate whose surrogate gradient has the highest cosine similarity to the finite
    differences (on a tie, `b` stays), up to `moves` times; store the last choice. `seed` draws a batch and weights.

    Raises UserError for a layer that the network does not have.
    """
    begin, settings, generator = time.perf_counter(), surrogates[0], torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(split), generator=generator)[: settings.batch]
    x, y = next(split.batches(settings.batch, rows))
    count = settings.weights if settings.subset == "random" else None
    layer = settings.layer or layers(net)[0]
    try:
        weights = sample(net, layer, count, generator)
        probe = Probe(net, loss, layer, x.to(device), y.to(device), weights)
    except (AttributeError, InvalidValue) as error:
        known = f"one of {', '.join(layers(net))}"
        raise InvalidValue("layer", settings.layer, known).told("surrogate.layer") from error
    finite = probe.finite(settings.eps)
    copies = adaptive(probe.net)
    groups = [copies] if settings.temperature == "shared" else [[one] for one in copies]
    for group in groups:
        _move(group, probe, finite)
    if not finite.any():
        advice = "the temperature stays; try a larger surrogate.eps or surrogate.batch"
        log.warning("the finite differences of %s are all zero: %s", layer, advice)
    seconds = time.perf_counter() - begin
    for surrogate, one in zip(surrogates, copies, strict=True):
        surrogate.b = one.b
        surrogate.choice = one.choice._replace(seconds=surrogate.choice.seconds + seconds)


def _move(group: Sequence[AdaptiveDspike], probe: Probe, finite: Tensor) -> None:
    """Move the temperature shared by `group` to the best candidate, until it stays or has moved `moves` times."""

    @cache
    def fidelity(b: float) -> Fidelity:
        for one in group:
            one.b = b
        return compare(probe.surrogate(), finite)

    for _ in range(group[0].moves):
        candidates = group[0].candidates
        found = [fidelity(b) for b in candidates]
        # a gradient that is zero everywhere loses; on a tie the first wins, which is b as it was
        best = max((1, 0, 2), key=lambda i: (found[i].ratio > 0, found[i].cosine))
        lower, same, higher = (f.cosine for f in found)
        for one in group:
            one.b = candidates[best]
            one.choice = Choice(lower, same, higher, found[best].error, found[best].nonzero)
        if best == 1:
            return


def temperature(net: nn.Module, history: Sequence[Mapping[str, float]]) -> dict[str, Figure]:
    """Draw the temperatures of `net` by epoch, and g' of the first at start, middle and end; nothing if none adapts."""
    places = [s.site if s.temperature == "per_layer" else "" for s in adaptive(net)]
    curves = {place: [m[f"train/b/{place}".rstrip("/")] for m in history] for place in places}
    if not curves:
        return {}
    figure, (over_time, shapes) = panels(2, 2, 4.5, 3.6, width_ratios=[1.3, 1])
    for (place, values), style in zip(curves.items(), styles(len(curves)), strict=True):
        over_time.plot(range(1, len(history) + 1), values, **style, markersize=3, label=place or "all layers")
    over_time.set(xlabel="epoch", ylabel="temperature b", ylim=(0, None))
    whole(over_time.xaxis)
    over_time.legend(frameon=False)
    x = torch.linspace(-1, 1, 801, dtype=torch.float64)
    place, first = next(iter(curves.items()))
    for epoch, color in zip(dict.fromkeys((1, (1 + len(first)) // 2, len(first))), (GREY, BLUE, ORANGE), strict=False):
        b = first[epoch - 1]
        shapes.plot(x.numpy(), Dspike(b).derivative(x).numpy(), color=color, label=f"epoch {epoch}: b = {b:.3g}")
    shapes.set(xlabel="x = v − θ", title=f"g'(x) of {place}" if place else "g'(x)")
    shapes.legend(frameon=False, fontsize=8)
    return {"temperature": figure}
