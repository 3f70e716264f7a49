"""The papers' own methods, each against a few lines that compute its equations independently."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snnexp.calibration.base import Calibration
from snnexp.calibration.bias import Bias
from snnexp.calibration.weights_sgd import WeightsSGD
from snnexp.conversion.adaptive_threshold import AdaptiveThreshold
from snnexp.conversion.few_spike import FewSpikeConversion
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import Converted, convert
from snnexp.conversion.neuron import ScaledIF
from snnexp.conversion.trains import along
from snnexp.conversion.walk import Layer, Proposal
from snnexp.dynamics import clip_floor
from snnexp.errors import InvalidValue
from snnexp.few_spike.table import decoded, relu


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(40, 3, 8, 8)


def first(snn: Converted) -> ScaledIF:
    return next(module for module in snn.modules() if isinstance(module, ScaledIF))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("T", "start"), [(1, 0.0), (4, 0.0), (4, 0.5), (8, 0.35), (8, 1.0), (32, 0.0)])
def test_the_adaptive_threshold_is_the_best_of_the_grid(
    net: nn.Sequential, x: Tensor, T: int, start: float, per_channel: bool
) -> None:
    snn, _ = convert(net, x, AdaptiveThreshold(grid=40, start=start, per_channel=per_channel), T)
    theta = first(snn).theta.flatten().double()
    z = net[0](x).detach().double()
    for c in range(5 if per_channel else 1):
        seen = z[:, c] if per_channel else z
        a, top = seen.relu(), seen.max()
        points = [top * i / 40 for i in range(1, 41)]
        errors = [(clip_floor(seen + start * p / T, p, T) - a).square().mean() for p in points]
        assert float(theta[c]) == pytest.approx(float(points[int(torch.stack(errors).argmin())]), rel=1e-5)


def test_few_spike_rounds_down_as_in_the_paper(net: nn.Sequential, x: Tensor) -> None:
    snn, _ = convert(net, x, FewSpikeConversion(rounding="down"), 4)
    (layer,) = (module for module in snn.modules() if hasattr(module, "table"))
    T, h, d = layer.table
    assert torch.equal(T, h)
    assert torch.equal(h, d)
    assert decoded(torch.tensor([6.9, 7.0]), relu(4, 16.0, "down")).tolist() == [6, 7]
    assert decoded(torch.tensor([6.4, 6.5]), relu(4, 16.0)).tolist() == [6, 7]
    with pytest.raises(InvalidValue, match="rounding"):
        FewSpikeConversion(rounding="up")


def test_weights_by_descent_are_those_of_the_equation(net: nn.Sequential, x: Tensor) -> None:
    """The first layer's input is the image, so the whole descent can be written down here."""
    T, method = 4, MaxThreshold()
    plain, _ = convert(net, x, method, T)
    theta = float(first(plain).theta.mean())
    snn, records = convert(net, x, method, T, [WeightsSGD(lr=1e-2, iterations=30, batch=8, seed=3)], keep="always")

    conv, a = nn.Conv2d(3, 5, 3), net[0](x).detach().relu()
    conv.load_state_dict(net[0].state_dict())
    optimizer = torch.optim.Adam([conv.weight], lr=1e-2)
    generator = torch.Generator().manual_seed(3)
    for i in range(30):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 + torch.cos(torch.tensor(torch.pi * i / 30))) / 2
        rows = torch.randperm(40, generator=generator)[:8]
        z = conv(x[rows])
        below = (z * T / theta).floor().clamp(0, T) * theta / T
        inside = ((z > 0) & (z < theta)).float()  # where the derivative is 1
        surrogate = (z * inside).where(inside > 0, z.detach())
        phi = surrogate + (below - surrogate).detach()
        optimizer.zero_grad()
        (phi - a[rows]).square().mean().backward()
        optimizer.step()
    weight = next(m for m in snn.modules() if isinstance(m, nn.Conv2d)).weight
    torch.testing.assert_close(weight, conv.weight, rtol=1e-4, atol=1e-5)
    assert records[0].corrections[0].after < 0.9 * records[0].corrections[0].before
    assert records[0].corrections[0].share == 1


class Harm:
    """A correction that makes every channel worse."""

    name = "harm"

    def propose(self, layer: Layer) -> Proposal:
        shift = along(torch.full_like(layer.stats.channel, 10), layer.stats.error.dim())
        return Proposal(Bias.score, layer.neuron.changed(bias=layer.neuron.bias + shift))


def test_corrections_are_kept_always_or_where_they_help(net: nn.Sequential, x: Tensor) -> None:
    for keep, share, bias in (("always", 1, 10), ("better", 0, 0)):
        snn, records = convert(net, x, MaxThreshold(), 2, [Harm()], keep=keep)
        assert [kept.share for record in records for kept in record.corrections] == [share, share]
        added = next(m for m in snn.modules() if isinstance(m, nn.Conv2d)).bias - net[0].bias
        torch.testing.assert_close(added.detach(), torch.full((5,), float(bias)))
    with pytest.raises(InvalidValue, match="keep"):
        Calibration(["harm"], 1, 0, {"harm": Harm()}, keep="sometimes")
