"""`task=export`: what NIR can say is written and read back spike for spike, the rest is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nir
import pytest
import torch
from spikingjelly.activation_based import nir_exchange
from torch import Tensor, nn

from conftest import SMALL, Done
from snnexp.errors import UserError
from snnexp.model.two_layer import TwoLayer
from snnexp.neuron.integrate_fire import IF
from snnexp.neuron.lif import LIF
from snnexp.neuron.plif import PLIF
from snnexp.surrogate.sine import Sine
from snnexp.task.export import to_nir
from snnexp.timefold import Dropout, TimeFold


def read_back(path: Path, x: Tensor) -> Tensor:
    """[T, N, ...] through the file, step by step, in SpikingJelly."""
    network, state, out = nir_exchange.import_from_nir(path), None, []
    for step in x:
        y, state = network(step) if state is None else network(step, state)
        out.append(y)
    return torch.stack(out)


class Residual(nn.Module):
    """Convolution, BatchNorm, neuron; a branch around a second one; average pooling, linear layer, neuron."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.norm, self.neuron1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), neuron()
        self.second, self.neuron2, self.drop = nn.Conv2d(4, 4, 3, padding=1), neuron(), Dropout(0.5)
        self.end = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 3), neuron())

    def forward(self, x: Tensor) -> Tensor:
        h = self.neuron1(self.norm(self.first(x)))
        return self.end(self.drop(self.neuron2(self.second(h) + h)))  # type: ignore[no-any-return]


NEURONS = {
    "if": lambda: IF(Sine(), reset="hard"),
    "if to -0.5": lambda: IF(Sine(), reset="hard", reset_value=-0.5, v_init=-0.5),
    "lif": lambda: LIF(Sine(), alpha=0.75, threshold=0.7, reset="hard"),
    "plif": lambda: PLIF(Sine(), alpha=0.6, reset="hard"),
}


@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_a_written_network_spikes_the_same_in_spikingjelly(neuron: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Residual(neuron).eval()
    network.norm.running_mean.normal_()
    network.norm.running_var.uniform_(0.5, 2)
    network.end[2].weight.data *= 4
    x = 3 * torch.randn(6, 5, 2, 8, 8)
    net = TimeFold(network, 6, temporal=True)
    with torch.no_grad():
        expected = net(x.transpose(0, 1))
    graph = to_nir(network, x[0, :1], tmp_path / "a.nir", 1e-4)
    assert (len(graph.nodes), len(graph.edges)) == (10, 10)  # an edge goes around the second
    assert 0.05 < float(expected.mean()) < 0.95
    with torch.no_grad():
        torch.testing.assert_close(read_back(tmp_path / "a.nir", x), expected, rtol=0, atol=0)


def test_the_file_holds_the_neurons_numbers(tmp_path: Path) -> None:
    network = TwoLayer((4,), 3, NEURONS["lif"], hidden=5, readout="spikes")
    to_nir(network, torch.zeros(1, 4), tmp_path / "a.nir", 1e-3)
    neurons = [n for n in nir.read(tmp_path / "a.nir").nodes.values() if isinstance(n, nir.LIF)]
    assert [n.v_threshold.shape for n in neurons] == [(5,), (3,)]
    for n in neurons:
        assert (n.v_threshold == 0.7).all()
        assert n.tau == pytest.approx(4e-3)  # tau = 1/(1 - alpha) steps of 1 ms
        assert (n.v_reset == 0).all()


@pytest.mark.parametrize(
    ("neuron", "named"),
    [
        (lambda: LIF(Sine()), "neuron1 cannot be written as NIR: it resets by subtracting"),
        (lambda: LIF(Sine(), reset="hard", v_init=0.5), "neuron1 .* starts at v_init=0.5"),
        (lambda: LIF(Sine(), reset="hard", reset_value=-1.0, v_init=-1.0), "neuron1 .* resets to -1.0"),
    ],
)
def test_a_neuron_that_nir_does_not_know_is_named(neuron: Callable[[], nn.Module], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        to_nir(Residual(neuron), torch.zeros(1, 2, 8, 8), tmp_path / "a.nir", 1e-4)
    assert not list(tmp_path.iterdir())


def test_layers_that_nir_does_not_know_are_named_together(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), IF(Sine(), reset="hard"), nn.Softmax(1))
    with pytest.raises(UserError, match=r"1 \(Tanh\), 3 \(Softmax\)"):
        to_nir(network, torch.zeros(1, 4), tmp_path / "a.nir", 1e-4)
    grouped = nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), IF(Sine(), reset="hard"))
    with pytest.raises(UserError, match="Grouped convolutions"):
        to_nir(grouped, torch.zeros(1, 2, 8, 8), tmp_path / "b.nir", 1e-4)


def test_the_command_line_exports_a_trained_network(snnexp: Callable[..., Done]) -> None:
    hard = (*SMALL, "neuron.reset=hard", "tracking=none")
    done = snnexp(*hard, "trainer.epochs=1")
    assert done.code == 0, done.err
    (run,) = done.runs()
    assert "it needs checkpoint=FILE" in snnexp("task=export", *hard).err
    assert "task.dt=0 is not allowed: it must be a time in seconds > 0" in snnexp("task=export", *hard, "task.dt=0").err
    exported = snnexp("task=export", *hard, f"checkpoint={run / 'best.pt'}")
    assert exported.code == 0, exported.err
    (file,) = done.outputs.glob("runs/*/*/network.nir")
    assert len(nir.read(file).nodes) == 7  # input, flatten, two linear layers and neurons, output
    soft = snnexp("task=export", *SMALL, f"checkpoint={run / 'best.pt'}")
    assert "layer neuron1 cannot be written as NIR: it resets by subtracting the threshold" in soft.err


def test_of_an_ann_the_neurons_it_would_have_are_named(snnexp: Callable[..., Done]) -> None:
    ann = (
        "dataset=digits",
        "model=mlp",
        "model.hidden=[8]",
        "neuron=relu",
        "loss=cross_entropy",
        "model.readout=current",
        "trainer.epochs=1",
        "trainer.threads=1",
        "timesteps=1",
        "tracking=none",
    )
    done = snnexp(*ann)
    assert done.code == 0, done.err
    (run,) = done.runs()
    refused = snnexp("task=export", *ann, f"checkpoint={run / 'best.pt'}")
    assert "its neurons (2) would reset by subtracting the threshold" in refused.err
    assert refused.code == 1
