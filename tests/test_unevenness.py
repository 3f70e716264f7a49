"""Unevenness: by hand, over all orders, in networks; and what mitigations do to it."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import ROOT, Done
from snnexp.analysis.unevenness import SmallNeuron as Neuron
from snnexp.analysis.unevenness import search, trace
from snnexp.build import build
from snnexp.conversion.arrival import ORDERS, arrivals, explanations, spearman
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.measure import even_count
from snnexp.conversion.network import Converted, convert
from snnexp.conversion.neuron import ScaledIF
from snnexp.conversion.qcfs import QCFSConversion
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.walk import walk
from snnexp.errors import InvalidValue, UserError
from snnexp.mitigation.base import Mitigation
from snnexp.mitigation.offset_spike import OffsetSpike
from snnexp.mitigation.residual_membrane import ResidualMembrane
from snnexp.mitigation.signed import Signed
from snnexp.mitigation.waiting import Waiting
from snnexp.model.resnet import cifar_resnet
from snnexp.neuron.qcfs import QCFS
from snnexp.task.dynamics import residuals
from snnexp.testing import MitigationContract, TaskContract

MITIGATIONS = sorted(p.stem for p in (ROOT / "conf" / "mitigation").glob("*.yaml"))
ACTIVE = [ResidualMembrane(2), OffsetSpike(4), OffsetSpike(3, rounds=2), Signed(1.0), Signed(0.0), Waiting()]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def made(option: str) -> Mitigation:
    from omegaconf import OmegaConf

    chosen = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "mitigation" / f"{option}.yaml"))
    return build("mitigation", {"mitigation": chosen})


def dyadic(module: nn.Module) -> nn.Module:
    """With weights that are multiples of 1/64: sums of them are exact in double precision, in any order."""
    for parameter in module.parameters():
        if parameter.dim() > 0:
            parameter.data = (parameter.data * 64).round() / 64
    return module.double().eval()


def network(levels: int = 4) -> nn.Module:
    """Four layers with QCFS whose thresholds, weights and steps are dyadic."""
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        QCFS(levels, 1.0),
        nn.Conv2d(6, 6, 3, padding=1),
        QCFS(levels, 0.5),
        nn.Conv2d(6, 8, 3),
        QCFS(levels, 0.5),
        nn.Flatten(),
        nn.Linear(128, 12),
        QCFS(levels, 0.25),
        nn.Linear(12, 5),
    )
    for layer in (net[2], net[4], net[7]):
        layer.weight.data *= 3
    return dyadic(net)


def images(n: int = 12) -> Tensor:
    return torch.randint(-32, 64, (n, 2, 6, 6)).double() / 32


def resnet() -> nn.Module:
    net = cifar_resnet((2, 8, 8), 5, lambda: QCFS(4, 1.0), depth=8, width=4, shortcut="B", readout="current")
    return net.eval()


# Small neurons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "start", "trains", "currents", "left", "spikes", "expected", "kind"),
    [
        ([1.0, -1.0], 0.0, ["10", "01"], [1, -1], -1.0, 1, 0, "over-firing"),
        ([1.0, 1.0], 0.0, ["01", "01"], [0, 2], 1.0, 1, 2, "under-firing"),
        ([-1.0], 0.0, ["11"], [-1, -1], -2.0, 0, 0, "correct zero"),
        ([2.0], 0.0, ["11"], [2, 2], 2.0, 2, 2, "saturated"),
        ([1.0, -1.0], 0.5, ["1000", "0011"], [1, 0, -1, -1], -1.5, 1, 0, "over-firing"),
        ([1.0, 1.0], 0.5, ["0011", "0011"], [0, 0, 2, 2], 2.5, 2, 4, "under-firing"),
        ([0.5, 0.5], 0.0, ["0011", "1100"], [0.5] * 4, 0.0, 2, 2, "inside"),
    ],
)
def test_cases_that_can_be_checked_by_hand(
    weights: list[float],
    start: float,
    trains: list[str],
    currents: list[float],
    left: float,
    spikes: int,
    expected: int,
    kind: str,
) -> None:
    rows = trace(Neuron(weights, 1.0, start, len(trains[0])), trains)
    assert [row["current"] for row in rows] == currents
    assert (rows[-1]["v"], rows[-1]["spikes"], rows[-1]["expected"], rows[-1]["kind"]) == (left, spikes, expected, kind)
    neuron = ScaledIF(torch.ones(1, 1), torch.full((1, 1), start))  # the neuron of converted networks agrees
    out, v = neuron.scan(torch.tensor(currents, dtype=torch.float32).view(-1, 1, 1), None)
    assert (float(out.sum()), float(v)) == (spikes, left)
    assert float(even_count(out.sum(0), v, neuron.theta, len(out))) == expected


def test_the_search_finds_what_one_finds_one_by_one() -> None:
    neuron = Neuron([1.5, -1.0], 1.0, 0.5, 3)
    errors = []
    for order in range(2**6):
        words = ["".join(str(order >> (3 * i + t) & 1) for t in range(3)) for i in range(2)]
        last = trace(neuron, words)[-1]
        errors.append(last["spikes"] - last["expected"])
        assert (errors[-1] > 0, errors[-1] < 0) == (last["kind"] == "over-firing", last["kind"] == "under-firing")
    found = search(neuron)
    assert found.orders == 64
    assert found.share == {e: errors.count(e) / 64 for e in sorted(set(errors))}
    assert found.worst == (min(errors), max(errors))
    for words, worst in ((found.worst_over, max(errors)), (found.worst_under, min(errors))):
        last = trace(neuron, words.split())[-1]
        assert last["spikes"] - last["expected"] == worst


def test_all_orders_of_eight_steps_at_once() -> None:
    """2^16 orders; the worst has all excitation first, then all inhibition: T/2 spikes too many."""
    found = search(Neuron([1.0, -1.0], 1.0, 0.0, 8))
    assert found.orders == 2**16
    assert (found.worst, found.worst_over, found.worst_under) == ((0, 4), "11110000 00001111", "")
    assert found.share[4] == 2**-16, "one order alone"
    assert found.widest == 4
    assert sum(found.share.values()) == pytest.approx(1)
    mirrored = search(Neuron([1.0, 1.0], 1.0, 0.0, 8))  # what lacks a -1 has a +1 more: too few instead of too many
    assert mirrored.share == {-e: share for e, share in sorted(found.share.items(), reverse=True)}


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.25, 0.75], [0.1, 0.3, 0.6], [1.0]])
def test_no_order_matters_without_inhibition_and_with_at_most_a_threshold_a_step(weights: list[float]) -> None:
    found = search(Neuron(weights, 1.0, 0.0, 6))
    assert found.share == {0: 1.0}
    assert (found.over, found.under, found.harmless) == (0, 0, 0)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: search(Neuron([1.0, 1.0, 1.0], T=7)), "T"),
        (lambda: Neuron([]), "weights"),
        (lambda: Neuron(["a"]), "weights"),
        (lambda: Neuron([1.0], theta=0.0), "theta"),
        (lambda: Neuron([1.0], T=0), "T"),
        (lambda: trace(Neuron([1.0], T=2), ["1"]), "trains"),
        (lambda: trace(Neuron([1.0], T=1), ["2"]), "trains"),
        (lambda: ResidualMembrane(0), "rehearse"),
        (lambda: OffsetSpike(0), "rehearse"),
        (lambda: OffsetSpike(2, rounds=0), "rounds"),
        (lambda: Signed(-1.0), "level"),
    ],
)
def test_wrong_values_are_refused(make: Callable[[], object], name: str) -> None:
    with pytest.raises(InvalidValue, match=name):
        make()


# The relation of neighbouring layers ----------------------------------------------------------------------------------


def test_both_sides_of_the_relation_agree_on_every_layer() -> None:
    net, x = resnet().double(), torch.randn(5, 2, 8, 8, dtype=torch.float64)
    snn, _ = convert(net, x, QCFSConversion(), 8)
    rows = [row for t in (1, 2, 8) for row in residuals(snn, x, t)]
    assert len(rows) == 3 * 7
    assert max(row["residual"] for row in rows) < 1e-13
    assert min(row["remainder"] for row in rows) > 1e-3
    assert all(0 < row["inside"] <= 0.5 / row["T"] for row in rows), "v(0) = theta/2: at most half a threshold away"


# Mitigations: neurons -------------------------------------------------------------------------------------------------


def currents(T: int = 6, n: int = 4000) -> Tensor:
    """[T, n, 1]: multiples of 1/8."""
    return torch.randint(-20, 24, (T, n, 1)).double() / 8


def placed(start: float = 0.5) -> ScaledIF:
    return ScaledIF(torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), start, dtype=torch.float64))


def spikes_off(neuron: ScaledIF, out: Tensor, state: object) -> Tensor:
    """Spikes too many, for output and state after T steps."""
    n = (out.sum(0) / neuron.theta).round()
    return n - even_count(n, neuron.residual(state), neuron.theta, len(out))


def test_srp_silences_exactly_the_neurons_whose_residual_is_negative() -> None:
    mitigation, c = ResidualMembrane(3), currents()
    neuron = mitigation.neuron(placed())
    _, after = neuron.scan(c[:3], None)
    _, left = placed().scan(c[:3], None)
    out, state = neuron.scan(c, mitigation.rehearsed(neuron, after))
    plain, v = placed().scan(c, None)
    silent = left < 0
    assert 0.1 < silent.double().mean() < 0.9
    assert not out[:, silent].any()
    assert torch.equal(out[:, ~silent], plain[:, ~silent])
    assert torch.equal(neuron.residual(state)[~silent], v[~silent])
    assert torch.equal(neuron.residual(state)[silent], (0.5 + c.sum(0))[silent]), "they gather, and never reset"


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_cos_brings_the_next_rehearsal_into_range(start: float) -> None:
    """One spike is added or removed, exactly where one was missing or too many; the residual moves by theta."""
    c = currents(T=5)
    before, v = placed(start).scan(c, None)
    n = before.sum(0)
    often, seldom = (v < 0) & (n > 0), (v >= 1) & (n < 5)
    assert min(often.double().mean(), seldom.double().mean()) > 0.05
    neuron = OffsetSpike(5).neuron(placed(start))
    out, state = neuron.scan(c, None)
    assert torch.equal(out.sum(0) - n, seldom.double() - often.double())
    left = neuron.residual(state)
    torch.testing.assert_close(left, v + often.double() - seldom.double(), rtol=0, atol=1e-12)
    near = (often & (v >= -1)) | (seldom & (v < 2))
    assert ((left[near] >= -1e-12) & (left[near] < 1)).all()
    assert float(spikes_off(neuron, out, state).abs().sum()) < float(spikes_off(placed(start), before, v).abs().sum())
    rounds = [
        float(spikes_off(m := OffsetSpike(5, r).neuron(placed(start)), *m.scan(c, None)).abs().sum()) for r in (1, 2, 5)
    ]
    assert rounds[0] > rounds[1] > rounds[2] == 0, "each round takes one spike; after five none is left"


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_signed_spikes_never_fall_below_zero_in_total(level: float) -> None:
    c = currents(T=8)
    neuron = Signed(level).neuron(placed())
    out, state = neuron.scan(c, None)
    assert set(out.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert out.cumsum(0).min() == 0
    assert torch.equal(neuron.residual(state), 0.5 + c.sum(0) - out.sum(0))
    plain, v = placed().scan(c, None)
    off = spikes_off(neuron, out, state)
    assert float(off.clamp(min=0).sum()) < 0.5 * float(spikes_off(placed(), plain, v).clamp(min=0).sum())
    halves = [neuron.scan(c[:3], None)]
    halves.append(neuron.scan(c[3:], halves[0][1]))
    assert torch.equal(torch.cat([h[0] for h in halves]), out)


def test_waiting_emits_what_even_input_would_evenly() -> None:
    c = currents(T=6)
    neuron = Waiting().neuron(placed())
    out, state = neuron.scan(c, None)
    constant, _ = placed().scan(c.mean(0).expand_as(c) + 1e-9, None)
    assert torch.equal(out.sum(0), constant.sum(0))
    assert not spikes_off(neuron, out, state).any()
    counts = out.cumsum(0)
    assert (counts - torch.arange(1, 7).view(-1, 1, 1) * counts[-1] / 6).abs().max() < 1


@pytest.mark.parametrize("mitigation", ACTIVE, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_even_input_is_left_as_it_is(mitigation: Mitigation, start: float) -> None:
    c = (torch.arange(-96, 200).view(-1, 1).double() / 64).expand(8, -1, 1)
    expected = placed(start).scan(c, None)[0].sum(0)
    neuron, state = mitigation.neuron(placed(start)), None
    if mitigation.before:
        _, after = neuron.scan(c[: mitigation.before], None)
        state = mitigation.rehearsed(neuron, after)
    out, state = neuron.scan(c, state)
    assert torch.equal(out.sum(0), expected)
    assert not spikes_off(neuron, out, state).any()


# Mitigations: networks ------------------------------------------------------------------------------------------------


def test_none_is_missing() -> None:
    assert set(MITIGATIONS) >= {"none", "offset_spike", "residual_membrane", "signed", "waiting"}
    assert type(made("none")) is Mitigation


@pytest.mark.parametrize("T", [2, 4, 8])
def test_waiting_is_the_quantised_ann_without_any_unevenness(T: int) -> None:
    """With T = L it is the source, elsewhere the source with T levels; exactly, layer by layer."""
    net, x = network(levels=4), images(40)
    source, spiking = rewrite(net, x)
    walk(source, spiking, x, 1, QCFSConversion())
    plain = Converted(spiking, T)
    waiting = Waiting().applied(plain)
    layers, account = waiting.examine(source, x, T)
    assert [layer.unevenness for layer in layers] == [0.0] * 4
    assert [(layer.over, layer.under) for layer in layers] == [(0.0, 0.0)] * 4
    assert account.latency == 4 * T
    uneven, _ = plain.examine(source, x, T)
    assert min(layer.unevenness for layer in uneven[1:]) > 0
    quantised = network(levels=4)
    quantised.load_state_dict(net.state_dict())
    for module in quantised:
        if isinstance(module, QCFS):
            module.levels = T
    with torch.no_grad():
        assert torch.equal(waiting(x), quantised(x))
        assert torch.equal(waiting(x, 4), net(x))
        assert torch.equal(waiting.at(x, [2, 4])[1], net(x))


def test_rehearsals_are_counted() -> None:
    """Latency, spikes and operations: of the network (SRP), of each layer once more (COS), of none (signed)."""
    net, x, T = network(), images(), 4
    source, spiking = rewrite(net, x)
    walk(source, spiking, x, 1, QCFSConversion())
    plain = Converted(spiking, T)
    at = {t: plain.examine(source, x, t)[1] for t in (2, 4)}
    srp = ResidualMembrane(2).applied(plain).examine(source, x, T)[1]
    assert srp.latency == 6
    assert at[2].spikes < srp.spikes < at[2].spikes + at[4].spikes, "its T steps have silent neurons"
    cos = OffsetSpike(2).applied(plain)
    twice = OffsetSpike(2, rounds=2).applied(plain)
    assert [n.latency(T) for n in (plain, cos, twice)] == [4, 4 * 2 + 4, 4 * 4 + 4]
    env, _, before = cos.simulated(x, T)
    sites = cos.flow.sites
    heard = sum(float((env[s] != 0).sum() + (before[0][s] != 0).sum()) for s in sites) / len(x)
    assert len(before) == 1
    assert cos.examine(source, x, T)[1].spikes == pytest.approx(heard)
    for s in sites:
        assert torch.equal(before[0][s], env[s][: 2 * len(x)])
    assert plain.flow.levels[plain.flow.output] == 4
    assert Signed(0.0).applied(plain).latency(T) == 4
    assert [m.steps(4) for m in ACTIVE] == [6, 8, 10, 4, 4, 4]


class TestEveryMitigation(MitigationContract):
    """On a residual network; the options of the group."""

    @pytest.fixture(autouse=True, params=MITIGATIONS)
    def _option(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param

    def make(self) -> Mitigation:
        return made(self.name)


class TestSettingsOfMitigations(MitigationContract):
    """On a network whose arithmetic is exact."""

    T = 6
    tolerance = 1.0

    @pytest.fixture(autouse=True, params=ACTIVE, ids=lambda m: type(m).__name__)
    def _option(self, request: pytest.FixtureRequest) -> None:
        self.mitigation = request.param

    def make(self) -> Mitigation:
        return self.mitigation

    def sample(self) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        return network(), images(60)


def test_other_neurons_and_short_runs_are_refused() -> None:
    net, x = network(), images()
    snn, _ = convert(net, x, QCFSConversion(), 4)
    mitigated = Signed(0.0).applied(snn)
    with pytest.raises(UserError, match=r"layer 1 has a SignedIF"):
        Waiting().applied(mitigated)
    with pytest.raises(InvalidValue, match="rehearse"):
        OffsetSpike(4).applied(snn)(x, 3)
    with pytest.raises(UserError, match="no stream"):
        next(iter(mitigated.stream(x)))


# The same spikes at other times ---------------------------------------------------------------------------------------


def test_other_orders_keep_the_spikes_and_even_ones_are_even() -> None:
    train = (torch.rand(8, 5, 3, 4, 4) < 0.4).float() * 0.7
    counts = (train.sum(0) / 0.7).round()
    for name, order in ORDERS.items():
        other = order(train, torch.Generator().manual_seed(1))
        assert torch.equal((other.sum(0) / 0.7).round(), counts), name
        assert set(other.unique().tolist()) <= {0.0, train.max().item()}, name
        assert torch.equal(other, order(train, torch.Generator().manual_seed(1))), name
        if name in ("evenly", "in step"):
            half = (other[:4].sum(0) - other[4:].sum(0)).abs().max() / 0.7
            assert half <= 1.01, name
    steps = ORDERS["steps permuted"](train, torch.Generator().manual_seed(1))
    assert torch.equal(steps.flatten(2).sum(2).sort(0).values, train.flatten(2).sum(2).sort(0).values)


def test_arrivals_as_they_are_is_the_simulation_and_other_orders_change_nothing_but_the_order() -> None:
    net, x, T = network(), images(10), 8
    source, spiking = rewrite(net, x)
    walk(source, spiking, x, 1, QCFSConversion())
    snn = Converted(spiking, T)
    rows = arrivals(snn, x, T)
    assert len(rows) == 3 * len(ORDERS)
    layers = {layer.layer: layer for layer in snn.examine(source, x, T)[0]}
    for row in rows:
        if row.arrival == "as it is":
            layer = layers[row.layer]
            assert (row.over, row.under) == pytest.approx((layer.over, layer.under))
            assert row.uneven**2 == pytest.approx(layer.unevenness * (T / layer.threshold) ** 2)
    assert [row.depth for row in rows if row.arrival == "evenly"] == [1, 2, 3]
    (told,) = explanations(rows)
    swing, error = ([getattr(row, k) for row in rows if row.arrival == "as it is"] for k in ("swing", "uneven"))
    assert told["swing"] == pytest.approx(spearman(swing, error))
    assert (told["depth"], told["sources"]) == (spearman([1, 2, 3], error), 0.0)
    net = resnet()
    snn, _ = convert(net, torch.randn(4, 2, 8, 8), MaxThreshold(), 4)
    assert {row.layer: row.sources for row in arrivals(snn, torch.randn(4, 2, 8, 8), 4)}["blocks.0.neuron2"] == 2


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 35, 90]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spearman([1, 1, 1], [1, 2, 3]) == spearman([1, 2, 3], [0.5, 0.5, 0.5]) == 0
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486832980505138)  # scipy.stats.spearmanr


# The command line -----------------------------------------------------------------------------------------------------

TINY = (
    "model=convnet",
    "model.width=4",
    "dataset=digits",
    "neuron=qcfs",
    "loss=cross_entropy",
    "trainer.epochs=1",
    "trainer.threads=1",
    "calibration.images=64",
    "conversion=qcfs",
    "task.layer_images=16",
)
BOUND = ("task.val_images=40", "task.test_images=40")


def table(run: Path, name: str) -> list[dict[str, str]]:
    with (run / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("environment")
class TestUnevennessTask(TaskContract):
    command = ("task=unevenness", *TINY, *BOUND, "timesteps=[2,4]", "task.T=[2]")

    def kept(self, run: Path, result: dict[str, float]) -> None:
        assert {p.stem for p in (run / "figures").iterdir()} == {"orders", "kinds", "accuracy", "arrivals"}
        kinds = {row["kind"] for row in table(run, "cases")}
        assert kinds == {"over-firing", "under-firing", "correct zero", "saturated"}
        parts = ("inside", "over", "under", "zeros", "saturated")
        shares = [sum(float(row[part]) for part in parts) for row in table(run, "kinds")]
        assert shares == pytest.approx([1.0] * len(shares), abs=1e-4)
        assert {row["T"] for row in table(run, "arrivals")} == {"2", "4"}
        assert {"val/over_T4", "test/snn_accuracy_T4", "val/latency_T4"} <= set(result)


@pytest.mark.usefixtures("environment")
class TestDynamicsTask(TaskContract):
    command = ("task=dynamics", *TINY, "timesteps=[1,4]")

    def kept(self, run: Path, result: dict[str, float]) -> None:
        assert max(float(row["residual"]) for row in table(run, "dynamics")) < 1e-5


@pytest.mark.usefixtures("environment")
class TestMitigationsTask(TaskContract):
    command = ("task=mitigations", *TINY, *BOUND, "timesteps=[4]")

    def kept(self, run: Path, result: dict[str, float]) -> None:
        rows = {row["mitigation"]: row for row in table(run, "mitigations")}
        assert {name: (row["T"], row["steps"]) for name, row in rows.items()} == {
            "none": ("4", "4"),
            "residual_membrane": ("2", "4"),
            "offset_spike": ("2", "4"),
            "signed": ("4", "4"),
            "signed_at_0": ("4", "4"),
            "waiting": ("4", "4"),
        }
        assert float(rows["waiting"]["uneven"]) == 0


def test_a_mitigation_counts_in_the_latency_of_a_conversion(snnexp: Callable[..., Done]) -> None:
    done = snnexp("task=convert", *TINY, *BOUND, "tracking=none", "timesteps=[4]", "mitigation=residual_membrane")
    assert done.code == 0, done.err
    assert done.result()["val/latency_T4"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["task=convert", "mitigation=offset_spike", "timesteps=[2,4]"], ["mitigation.rehearse=4", "T = 2"]),
        (["task=convert", "mitigation=signed", "mitigation.level=-1"], ["mitigation.level=-1", ">= 0"]),
        (["task=convert", "mitigation=nope"], ["mitigation=nope is not allowed", "residual_membrane"]),
        (["task=dynamics", "mitigation=signed"], ["mitigation=none"]),
        (["task=mitigations", "mitigation=signed"], ["mitigation=none"]),
        (["task=unevenness", "task.T=8"], ["task.T=8", "a list"]),
        (["task=unevenness", "task.thresholds=2"], ["task.thresholds=2", "a list"]),
        (["task=unevenness", "task.T=[11]"], ["task.T=11", "at most 10"]),
        (["task=unevenness", "+task.cases.bad={weights:[1.0],trains:['12']}"], ["task.cases.bad.trains", "0 or 1"]),
    ],
)
def test_wrong_requests_are_refused(snnexp: Callable[..., Done], arguments: list[str], words: list[str]) -> None:
    done = snnexp(arguments[0], *TINY, *arguments[1:])
    assert done.code == 1
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err
    assert not done.runs()
