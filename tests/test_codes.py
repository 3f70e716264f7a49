"""A code is its neuron: a third one, defined here, is placed, run and examined. Saved models stay readable."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnexp.calibration.bias import Bias
from snnexp.calibration.potential import Potential
from snnexp.calibration.threshold import Threshold
from snnexp.calibration.weights import Weights
from snnexp.conversion import network, neuron, rewrite, stateful
from snnexp.conversion.arrival import arrivals
from snnexp.conversion.network import Converted, convert
from snnexp.conversion.placed import Placed
from snnexp.conversion.thresholds import largest
from snnexp.conversion.vocabulary import Vocabulary
from snnexp.conversion.walk import Layer, walk
from snnexp.errors import UserError
from snnexp.mitigation.signed import Signed

MOST = 3  # spikes a step


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Bursting(Converted):
    """Runs networks of `Burst`."""

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        return {"bursts": [{"layer": str(site.target), "most": MOST} for site in self.flow.sites]}


class Without(Vocabulary):
    """Any words but those of the rate code."""

    def refusal(self, layer: str, kind: str) -> UserError:
        return UserError(f"no bursts through {layer} ({kind})")


class Burst(Placed):
    """Emits up to three spikes of `theta` a step; its counts are stored as bytes."""

    network = Bursting
    vocabulary = Without()
    values = ("bias", "theta")

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.register_buffer("theta", theta)
        self.register_buffer("bias", torch.zeros_like(theta))

    def scan(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        v, out = self.theta / 2 + torch.zeros_like(x[0]) if state is None else state, []
        for current in x:
            v = v + current + self.bias
            out.append(self.theta * (v / self.theta).floor().clamp(0, MOST))
            v = v - out[-1]
        return torch.stack(out), v

    def packed(self, emitted: Tensor) -> Tensor:
        return (emitted / self.theta).round().to(torch.uint8)

    def recalled(self, stored: Tensor, T: int, mean: bool) -> Tensor:
        return super().recalled(stored * self.theta, T, mean)


class Bursts:
    """The conversion that places `Burst`."""

    neuron, maxpool, per_T = Burst, None, False

    def place(self, layer: Layer) -> Burst:
        return Burst(largest(layer) / MOST)


def net() -> nn.Module:
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    return nn.Sequential(*layers).eval()


def test_a_third_code_needs_no_other_file() -> None:
    ann, x, T = net(), torch.randn(40, 3, 8, 8), 6
    corrections = [Bias(), Potential(), Weights(), Threshold(images=20)]
    snn, records = convert(ann, x, Bursts(), T, corrections)
    assert type(snn) is Bursting
    assert [[kept.correction for kept in record.corrections] for record in records] == [["bias", "weights"]] * 3
    assert [record.theta for record in records] == [None] * 3
    plain, _ = convert(ann, x, Bursts(), T)
    errors = [float((made(x) - ann(x).detach()).square().mean()) for made in (plain, snn)]
    assert errors[1] < errors[0] < 0.1 * float(ann(x).detach().square().mean())
    torch.testing.assert_close(snn.at(x[:5], [2, T])[1], snn(x[:5]))
    assert snn.tables() == {"bursts": [{"layer": "1", "most": MOST}, {"layer": "3", "most": MOST}]}


def test_what_the_walk_stores_is_what_the_network_emits() -> None:
    ann, x, T = net(), torch.randn(20, 3, 8, 8), 5
    source, spiking = rewrite.rewrite(ann, x[:2], vocabulary=Burst.vocabulary)
    heard: list[Tensor] = []

    class Listening(Bursts):
        def place(self, layer: Layer) -> Burst:
            heard.extend(current for _, current in layer.trains())
            return super().place(layer)

    walk(source, spiking, x, T, Listening())
    snn = network.converted(spiking, T)
    env, state, _ = snn.simulated(x, T)
    (first, second) = snn.flow.sites
    torch.testing.assert_close(heard[-1], env[second.args[0]].unflatten(0, (T, -1)))
    layers, account = snn.examine(source, x, T)
    phi, a = env[second].unflatten(0, (T, -1)).mean(0), ann[:4](x).detach()
    assert layers[1].error == pytest.approx(float((phi - a).square().mean()))
    assert layers[1].silent == pytest.approx(float((phi == 0).float().mean()))
    assert account.spikes == pytest.approx(sum(float((env[site] != 0).sum()) for site in (first, second)) / 20)
    assert state[first].shape == (20, 6, 6, 6)


def test_what_takes_integrate_and_fire_neurons_refuses_it() -> None:
    x = torch.randn(4, 3, 8, 8)
    snn, _ = convert(net(), x, Bursts(), 3)
    assert not snn.integrates
    for use in (lambda: Signed(0.0).applied(snn), lambda: arrivals(snn, x, 3)):
        with pytest.raises(UserError, match=r"takes plain integrate-and-fire neurons, and layer \w+ has a Burst"):
            use()
    with pytest.raises(UserError, match=r"no bursts through 1 \(Tanh\)"):
        convert(nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Linear(8, 2)).eval(), x, Bursts(), 3)


def test_corrections_change_what_the_neuron_allows() -> None:
    placed = Burst(torch.ones(1, 3))
    with pytest.raises(TypeError, match=r"may change bias, theta of Burst, not .*v_init"):
        placed.changed(v_init=torch.zeros(1, 3))
    other = placed.changed(theta=torch.full((1, 3), 2.0))
    mixed = placed.mixed(torch.tensor([True, False, True]), other)
    assert mixed.theta.tolist() == [[2.0, 1.0, 2.0]]
    assert placed.theta.tolist() == [[1.0, 1.0, 1.0]]
    assert mixed.bias is placed.bias


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("snnexp.conversion.neuron ScaledIF", neuron.ScaledIF),
        ("snnexp.conversion.neuron FewSpike", neuron.FewSpike),
        ("snnexp.conversion.neuron MaxGate", stateful.MaxGate),
        ("snnexp.conversion.neuron Frames", stateful.Frames),
        ("snnexp.conversion.network Converted", network.Converted),
        ("snnexp.conversion.network Decoded", network.Decoded),
        ("snnexp.conversion.graph _Tracer", rewrite.Tracer),
    ],
)
def test_names_in_saved_models_are_still_found(path: str, found: type) -> None:
    assert pickle.loads(f"c{path}\n.".replace(" ", "\n").encode()) is found
