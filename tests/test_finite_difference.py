"""Finite differences against closed forms and brute force; the temperature that they choose; zero gradients by hand."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import SMALL, Done
from snnexp.analysis.finite_difference import Probe, compare, layers, sample
from snnexp.analysis.sparsity import sparsity
from snnexp.analysis.temperature import adapt, adaptive, choose
from snnexp.dataset.base import Split
from snnexp.errors import InvalidValue
from snnexp.loss import CrossEntropy, MSERate
from snnexp.model.resnet import cifar_resnet
from snnexp.model.two_layer import TwoLayer
from snnexp.neuron.lif import LIF
from snnexp.surrogate.dspike import Dspike
from snnexp.surrogate.dspike_adaptive import AdaptiveDspike
from snnexp.surrogate.sine import Sine
from snnexp.testing import TaskContract
from snnexp.timefold import TimeFold
from snnexp.training import Progress, load_checkpoint

POTENTIAL = ("model.readout=potential", "loss=cross_entropy")
ADAPTIVE = (*SMALL, *POTENTIAL, "surrogate=dspike_adaptive", "surrogate.weights=64", "surrogate.batch=16")


def two_layer(surrogate: nn.Module, *, T: int = 3, hidden: int = 6, readout: str = "potential") -> TimeFold:
    torch.manual_seed(0)
    net = TwoLayer((1, 2, 2), 3, lambda: LIF(copy.deepcopy(surrogate), 0.5), hidden=hidden, readout=readout)
    return TimeFold(net, T, temporal=True)


def batch(n: int = 5, T: int = 3, shape: tuple[int, ...] = (1, 2, 2)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 4, (n, T, *shape), generator=generator), torch.arange(n) % 3


def brute(net: TimeFold, loss: nn.Module, layer: str, x: Tensor, y: Tensor, weights: Tensor, eps: float) -> Tensor:
    """Central differences, a weight and two passes of the whole network at a time."""
    net, found = copy.deepcopy(net).eval(), []
    weight = net.network.get_parameter(f"{layer}.weight").detach().view(-1)
    for i in weights:
        before, values = weight[i].clone(), []
        for step in (eps, -eps):
            weight[i] = before + step
            values.append(loss(net(x), y).detach())
        weight[i] = before
        found.append((values[0] - values[1]) / (2 * eps))
    return torch.stack(found)


@pytest.mark.parametrize("layer", ["linear1", "linear2"])
@pytest.mark.parametrize("loss", [MSERate(), CrossEntropy()], ids=["mse", "cross_entropy"])
def test_on_a_smooth_network_the_error_falls_as_eps_squared(layer: str, loss: nn.Module) -> None:
    """Neurons that emit their primitive: the loss is smooth, and its derivative autograd's."""
    net, (x, y) = two_layer(Sine(12.0, spiking=False), readout="spikes").double(), batch()
    weights = torch.arange(net.network.get_parameter(f"{layer}.weight").numel())
    probe = Probe(net, loss, layer, x, y, weights)
    (exact,) = torch.autograd.grad(loss(net(x), y), [net.network.get_parameter(f"{layer}.weight")])
    torch.testing.assert_close(probe.surrogate(), exact.flatten(), rtol=1e-10, atol=1e-14)
    errors = [float((probe.finite(eps) - exact.flatten()).norm()) for eps in (0.02, 0.01, 0.005)]
    assert errors[0] < 0.01 * float(exact.norm())
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([4, 4], rel=0.1)


@pytest.mark.parametrize("layer", ["linear1", "linear2"])
def test_with_spikes_it_equals_two_whole_passes_for_each_weight(layer: str) -> None:
    net, loss, (x, y) = two_layer(Dspike(3.0), hidden=8, readout="spikes").double(), MSERate(), batch(7)
    with torch.no_grad():
        net.network.get_parameter("linear2.weight").mul_(4)  # so that the output fires
    weights = torch.arange(net.network.get_parameter(f"{layer}.weight").numel())
    expected = brute(net, loss, layer, x, y, weights, 0.2)
    assert (expected != 0).double().mean() > 0.1
    torch.testing.assert_close(Probe(net, loss, layer, x, y, weights).finite(0.2), expected)


def test_a_residual_network_in_its_middle_too() -> None:
    """Convolution, norm, neuron, additions: nothing shortened but the passes; norms as in evaluation."""
    torch.manual_seed(0)
    plain = cifar_resnet((2, 8, 8), 3, lambda: LIF(Dspike(3.0), 0.5), depth=8, width=4, shortcut="A", readout="current")
    net = TimeFold(plain, 2, temporal=True).double()
    x, y = batch(3, 2, (2, 8, 8))
    net(x)  # running statistics
    loss, generator = CrossEntropy(), torch.Generator().manual_seed(0)
    for layer in (layers(net)[0], layers(net)[3], layers(net)[-1]):
        weights = sample(net, layer, 6, generator)
        probe = Probe(net, loss, layer, x, y, weights)
        torch.testing.assert_close(probe.finite(0.3), brute(net, loss, layer, x, y, weights, 0.3))
        (slope,) = torch.autograd.grad(loss(net.eval()(x), y), [net.network.get_parameter(f"{layer}.weight")])
        torch.testing.assert_close(probe.surrogate(), slope.flatten()[weights])


def test_its_direction_on_two_weights_is_the_slope_of_the_loss_by_brute_force() -> None:
    """A neuron of two inputs whose loss is a staircase over the plane of its weights: the plane that fits the loss best
    on a fine grid of the square of half-width eps has nearly the direction of the finite differences."""
    torch.manual_seed(0)
    net = TimeFold(
        nn.Sequential(nn.Flatten(), _linear([[0.8, 0.5]]), LIF(Dspike(3.0), 0.5), _linear([[1.0], [-1.0]])),
        6,
        temporal=True,
    ).double()
    x, y = torch.rand(400, 6, 2, generator=torch.Generator().manual_seed(2)).double(), torch.zeros(400).long()
    eps, loss = 0.1, CrossEntropy()
    finite = Probe(net, loss, "1", x, y, torch.arange(2)).finite(eps)
    weight, steps = net.network.get_parameter("1.weight").detach(), torch.linspace(-eps, eps, 21).double()
    at, values = weight.clone(), []
    for a in steps:
        for b in steps:
            weight[0, 0], weight[0, 1] = at[0, 0] + a, at[0, 1] + b
            values.append(loss(net(x), y).detach())
    grid = torch.cartesian_prod(steps, steps)
    plane = torch.linalg.lstsq(torch.cat([grid, torch.ones(len(grid), 1).double()], 1), torch.stack(values)[:, None])
    assert compare(plane.solution[:2, 0], finite).cosine > 0.999
    assert finite.abs().min() > 0.01


def _linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer


def test_cosine_ratio_and_standard_error() -> None:
    f = torch.tensor([1.0, 0.0, 2.0, 0.0])
    assert compare(2 * f, f) == pytest.approx((1.0, 0.0, 2.0, 0.5), abs=1e-7)
    assert compare(-f, f).cosine == pytest.approx(-1)
    assert compare(f, 0 * f) == (0.0, 0.0, 0.0, 0.0)
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(400, 1000, generator=generator)
    g = f + torch.randn(400, 1000, generator=generator)
    found = [compare(a, b) for a, b in zip(g, f, strict=True)]
    spread = torch.tensor([one.cosine for one in found]).std()
    assert found[0].error == pytest.approx(float(spread), rel=0.15), "what 400 draws of the weights really give"


def test_a_layer_that_is_not_there_or_used_twice_is_refused() -> None:
    net, (x, y) = two_layer(Dspike(3.0)), batch()
    with pytest.raises(InvalidValue, match="linear1, linear2"):
        Probe(net, MSERate(), "neuron1", x, y, torch.arange(2))
    shared = nn.Linear(4, 4)
    twice = TimeFold(nn.Sequential(nn.Flatten(), shared, shared), 3, temporal=True)
    with pytest.raises(InvalidValue, match="used once"):
        Probe(twice, MSERate(), "1", x, y, torch.arange(2))


# Adaptive Dspike ------------------------------------------------------------------------------------------------------


def history(done: Done) -> list[dict[str, float]]:
    assert done.code == 0, done.err
    return list(load_checkpoint(max(done.runs()) / "last.pt")["history"])


@pytest.mark.parametrize("temperature", ["shared", "per_layer"])
def test_the_chosen_b_has_the_highest_of_the_logged_cosines(snnexp: Callable[..., Done], temperature: str) -> None:
    done = snnexp(
        *ADAPTIVE,
        "trainer.epochs=4",
        "surrogate.b=20",
        "surrogate.db=2",
        "surrogate.weights=512",
        f"surrogate.temperature={temperature}",
        "tracking=none",
    )
    b, place, moved = 20.0, "/neuron1" if temperature == "per_layer" else "", 0
    for metrics in history(done):
        cosines = {
            b - 2: metrics[f"train/fdg_lower{place}"],
            b: metrics[f"train/fdg_same{place}"],
            b + 2: metrics[f"train/fdg_higher{place}"],
        }
        before, b = b, metrics[f"train/b{place}"]
        assert cosines[b] == max(cosines.values()) != 0
        assert 0 < metrics[f"train/fdg_error{place}"] < 0.5
        assert metrics[f"train/fdg_seconds{place}"] > 0
        moved += b != before
    assert moved
    (folder,) = done.runs()
    assert (folder / "figures" / "temperature.png").stat().st_size > 10_000
    best = load_checkpoint(folder / "best.pt")
    kept = best["model"]["network.neuron1.surrogate._extra_state"]
    assert float(kept[0]) == history(done)[best["epoch"]][f"train/b{place}"], "part of the weights' file"


def test_bounds_hold_and_no_signal_moves_nothing(snnexp: Callable[..., Done]) -> None:
    low = snnexp(*ADAPTIVE, "surrogate.b=4", "surrogate.low=4", "surrogate.high=4", "tracking=none")
    assert [m["train/b"] for m in history(low)] == [4.0, 4.0]
    done = snnexp(*ADAPTIVE, "neuron.threshold=1000", "tracking=none")
    assert [(m["train/b"], m["train/fdg_nonzero"]) for m in history(done)] == [(3.0, 0.0)] * 2
    assert "finite differences of linear1 are all zero" in done.out + done.err


def strip(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if "seconds" not in key}


def test_it_resumes_exactly(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    import signal

    from snnexp.training import Fit

    arguments = (
        *ADAPTIVE,
        "trainer.epochs=3",
        "surrogate.every=9",
        "surrogate.db=2",
        "tracking=none",
        "trainer.checkpoint_every_s=0.001",
    )
    straight = snnexp(*arguments)
    expected, weights = history(straight), load_checkpoint(max(straight.runs()) / "last.pt")["model"]
    step, count = Fit._step, 0

    def interrupted(self: Fit, x: Tensor, y: Tensor) -> None:
        nonlocal count
        count += 1
        step(self, x, y)
        if count == 30:  # in the middle of the second epoch, after a choice within it
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "_step", interrupted)
        assert snnexp(*arguments, f"outputs_dir={tmp_path / 'killed'}").code == 130
    again = snnexp(*arguments, f"outputs_dir={tmp_path / 'killed'}", "resume=true")
    (folder,) = {p.parent for p in (tmp_path / "killed").glob("runs/*/*/last.pt")}
    state = load_checkpoint(folder / "last.pt")
    assert again.code == 0
    assert [strip(m) for m in state["history"]] == [strip(m) for m in expected]
    assert len({m["train/b"] for m in expected}) > 1
    assert all(torch.equal(state["model"][key], weights[key]) for key in weights)


@pytest.mark.slow
def test_two_ranks_share_one_choice(snnexp: Callable[..., Done]) -> None:
    """The first choice is that of one process; batches of 32 on two ranks are one of 64 (but for the last)."""
    two = snnexp(*ADAPTIVE, "trainer.devices=2", "trainer.accelerator=cpu", "trainer.batch_size=32", "tracking=none")
    first = history(two)
    alone = history(snnexp(*ADAPTIVE, "tracking=none"))
    for name in ("b", "fdg_lower", "fdg_same", "fdg_higher"):
        assert first[0][f"train/{name}"] == pytest.approx(alone[0][f"train/{name}"], rel=1e-5)
    assert first[0]["train/loss"] == pytest.approx(alone[0]["train/loss"], rel=0.02)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("surrogate.b=50", "surrogate.b=50 is not allowed: it must be a number from low=0.1 to high=30"),
        (
            "surrogate.temperature=both",
            "surrogate.temperature=both is not allowed: it must be one of shared, per_layer",
        ),
        ("surrogate.every=0", "surrogate.every=0 is not allowed: it must be an integer >= 1"),
        ("surrogate.moves=0", "surrogate.moves=0 is not allowed: it must be an integer >= 1"),
        ("surrogate.weights=1", "surrogate.weights=1 is not allowed: it must be an integer >= 2"),
        ("surrogate.layer=linear3", "surrogate.layer=linear3 is not allowed: it must be one of linear1, linear2"),
    ],
)
def test_wrong_settings_are_refused(snnexp: Callable[..., Done], argument: str, said: str) -> None:
    done = snnexp(*ADAPTIVE, argument, "tracking=none")
    assert done.code == 1
    assert said in done.err
    assert "Traceback" not in done.err


SETTINGS = {
    "b": 3.0,
    "db": 1.0,
    "low": 1.0,
    "high": 5.0,
    "temperature": "shared",
    "every": None,
    "moves": 1,
    "layer": None,
    "subset": "all",
    "weights": 2,
    "batch": 4,
    "eps": 0.5,
}


def test_several_moves_are_single_ones_on_the_same_differences() -> None:
    def chosen(moves: int, times: int) -> list[tuple[float, tuple[float, ...]]]:
        """Return b and the cosines after each of so many choices on the same samples and weights."""
        settings = SETTINGS | {"b": 30.0, "high": 30.0, "moves": moves, "batch": 16}
        net, (x, y), path = two_layer(AdaptiveDspike(**settings)), batch(16), []
        for _ in range(times):
            choose(net, adaptive(net), Split(x, y, torch.arange(16)), CrossEntropy(), 0, torch.device("cpu"))
            path.append((adaptive(net)[0].b, adaptive(net)[0].choice[:5]))
        return path

    single = chosen(1, 39)
    path = [b for b, _ in single]
    assert path[:3] == [29.0, 28.0, 27.0]
    assert 1 < path[-1] == path[-2] < 25, "it has arrived"
    assert chosen(3, 1)[-1] == single[2]
    assert chosen(100, 1)[-1] == single[-1]
    _, (lower, same, higher, *_) = single[-1]
    assert same == max(lower, same, higher)


def test_another_rank_takes_the_choice_of_the_first() -> None:
    first, other = (two_layer(AdaptiveDspike(**SETTINGS), readout="spikes") for _ in range(2))
    assert [one.site for one in adaptive(first)] == ["neuron1", "readout"]
    assert adaptive(first)[0].candidates == (2.0, 3.0, 4.0)
    for net in (first, other):
        net.network.get_parameter("linear2.weight").data.mul_(4)  # so that the output fires
    sent: list[list[Tensor]] = []

    def rank(zero: bool) -> Any:
        return SimpleNamespace(
            is_global_zero=zero,
            device=torch.device("cpu"),
            broadcast=lambda states: sent.append(states) or states if zero else sent[0],
        )

    x, y = batch(8)
    for net, zero in ((first, True), (other, False)):
        adapt(rank(zero), net, Split(x, y, torch.arange(8)), MSERate(), 0, Progress(), 5)
    assert adaptive(first)[0].b in (2.0, 4.0)
    assert [one.b for one in adaptive(other)] == [one.b for one in adaptive(first)]
    assert adaptive(other)[1].choice == adaptive(first)[1].choice
    before = [one.b for one in adaptive(first)]
    adapt(rank(True), first, Split(x, y, torch.arange(8)), MSERate(), 0, Progress(step=3), 5)  # not due
    assert [one.b for one in adaptive(first)] == before
    assert len(sent) == 1


# Zero gradients -------------------------------------------------------------------------------------------------------


def test_zero_gradients_by_hand() -> None:
    """One step, no leak to speak of: potentials are the currents, the surrogate's support is |v - 1| < 1/2."""
    net = TimeFold(
        nn.Sequential(
            nn.Flatten(), _linear([[1.0, 0.0], [0.0, 1.0]]), LIF(Dspike(3.0), 0.5), _linear([[1.0, 0.5], [-1.0, 0.25]])
        ),
        1,
        temporal=True,
    )
    x = torch.tensor([[0.0, 0.75], [1.25, 0.0], [1.25, 2.0], [0.0, 0.25]]).view(4, 1, 2)
    found = sparsity(net, CrossEntropy(), x, torch.tensor([0, 1, 0, 1]))
    # potentials: of 8, those within 1/2 of the threshold are 0.75, 1.25, 1.25; without later steps currents are alike
    assert found.sites == {"2": (5 / 8, 5 / 8, 3 / 8)}
    # weight (1, 0) meets x[:, 0] in samples where neuron 1 has a slope: only sample 0, whose x[0, 0] is 0: zero;
    # weight (0, 1) meets x[:, 1] in samples 1 and 2, and 2.0 in sample 2: not zero
    assert found.weights == {"1": 1 / 4, "3": 0.0}
    # products: layer 1 4 x 2 x 2 for its weights, 5/8 of them skipped; layer 3 twice 4 x 2 x 2, none
    assert found.skippable == pytest.approx(16 * 5 / 8 / 48)


@pytest.mark.usefixtures("environment")
class TestMeasuring(TaskContract):
    """The tables agree with the metrics."""

    cases = (("sparsity", "potentials", "neuron1"), ("fidelity", "cosine", "linear1"))

    @pytest.fixture(autouse=True, params=cases, ids=lambda case: case[0])
    def _command(self, request: pytest.FixtureRequest) -> None:
        self.what, self.column, self.layer = request.param
        self.command = (*SMALL, *POTENTIAL, f"task=gradient_{self.what}", "task.batch=16", "surrogate=sine")

    def kept(self, run: Path, result: dict[str, float]) -> None:
        with (run / "tables" / f"{self.what}.csv").open() as file:
            rows = list(csv.DictReader(file))
        said = [float(row[self.column]) for row in rows if row["layer"] == self.layer]
        assert said == [
            epoch[f"{self.what}/{self.column}/{self.layer}"] for epoch in load_checkpoint(run / "last.pt")["history"]
        ]
        assert 0.1 < said[-1] < 1, f"{self.column} of {self.layer}"
        assert (run / "figures" / f"{self.what}.png").stat().st_size > 10_000
