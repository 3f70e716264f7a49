"""Few-spike neurons: the scalar loop, binary digits, fitted tables, SpikingJelly as oracle, and whole networks."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from conftest import Done
from snnexp.activations import ACTIVATIONS, Activation, named, of_module
from snnexp.analysis.few_spike import codes, error_against_steps
from snnexp.calibration.bias import Bias
from snnexp.calibration.weights import Weights
from snnexp.conversion import slots
from snnexp.conversion.few_spike import FewSpikeConversion
from snnexp.conversion.flow import Flow
from snnexp.conversion.network import Decoded, convert
from snnexp.conversion.neuron import FewSpike
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.vocabulary import NUMBERS, Curve
from snnexp.conversion.walk import walk
from snnexp.errors import InvalidValue, UserError
from snnexp.few_spike.fit import fit_table
from snnexp.few_spike.table import SHIPPED, load_tables, measured, relu, save_tables, spikes
from snnexp.few_spike.table import Coefficients as Table
from snnexp.few_spike.table import decoded as decode
from snnexp.model.resnet import cifar_resnet
from snnexp.testing import ConversionContract, CorrectionContract, TaskContract
from snnexp.timefold import TimeMean


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def some_table(K: int = 7) -> Table:
    return Table(torch.randn(K), torch.randn(K), torch.randn(K))


# The neuron -----------------------------------------------------------------------------------------------------------


def by_hand(x: float, table: Table) -> tuple[list[int], float]:
    v, y, fired = x, 0.0, []
    for T, h, d in zip(*(part.double().tolist() for part in table), strict=True):
        z = 1 if v >= T else 0
        v -= h * z
        y += d * z
        fired.append(z)
    return fired, y


def test_the_neuron_is_the_scalar_loop() -> None:
    table, x = Table(*(part.double() for part in some_table())), 3 * torch.randn(200, dtype=torch.float64)
    z, y = torch.stack(list(spikes(x, table))), decode(x, table)
    for i, value in enumerate(x.tolist()):
        fired, output = by_hand(value, table)
        assert z[:, i].tolist() == fired
        assert float(y[i]) == pytest.approx(output, abs=1e-12)


def test_each_channel_has_its_own_coefficients() -> None:
    tables = [some_table(4) for _ in range(3)]
    together = Table(*(torch.stack(parts, 1).view(4, 1, 3, 1) for parts in zip(*tables, strict=True)))
    neuron, x = FewSpike(together, torch.tensor([0.1, 0.0, -0.2]).view(1, 3, 1)), torch.randn(5, 3, 6)
    for c, (table, bias) in enumerate(zip(tables, (0.1, 0.0, -0.2), strict=True)):
        torch.testing.assert_close(neuron(x)[:, c], decode(x[:, c] + bias, table))
    assert neuron.spikes(x).shape == (4, 5, 3, 6)


def test_it_is_spikingjellys_node_spike_for_spike() -> None:
    from spikingjelly.activation_based.neuron import FewSpikeNode, FewSpikeTable

    table, x = some_table(), 2 * torch.randn(50, 4)
    node = FewSpikeNode(FewSpikeTable(table.T, table.h, table.d), step_mode="m")
    train = node(torch.cat([x[None], torch.zeros(6, 50, 4)]))  # the input comes at once
    ours = torch.stack([d * z for z, d in zip(spikes(x, table), table.d, strict=True)])
    torch.testing.assert_close(ours, train.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("K", [1, 3, 8, 10])
def test_relu_is_exact_on_its_grid_and_its_spikes_are_binary_digits(K: int) -> None:
    n, top = torch.arange(2**K), 3.7
    x = n * (top / 2**K)
    table = relu(K, top)
    z = torch.stack(list(spikes(x, table)))
    digits = torch.stack([(n >> (K - 1 - t)) & 1 for t in range(K)]).float()
    assert torch.equal(z, digits)
    torch.testing.assert_close(decode(x, table), x, rtol=1e-6, atol=1e-6)
    assert not decode(-torch.rand(50), table).any()
    assert torch.allclose(decode(torch.full((1,), 100.0), table), torch.tensor(top * (1 - 2.0**-K)))


def test_relu_rounds_where_the_talks_thresholds_cut_off() -> None:
    """Mean squared error (top 2^-K)^2 / 12 to a per cent, no mean error; with T = h four times as much."""
    found = measured("relu", (0.0, 25.0), relu(10, torch.tensor(25.0, dtype=torch.float64)), 200_001)
    assert found.mse == pytest.approx((25 * 2**-10) ** 2 / 12, rel=0.01)
    h = relu(10, torch.tensor(25.0, dtype=torch.float64)).h
    assert measured("relu", (0.0, 25.0), Table(h, h, h), 200_001).mse == pytest.approx((25 * 2**-10) ** 2 / 3, rel=0.01)


def test_ten_steps_resolve_what_a_rate_does_in_1023() -> None:
    found = codes(inputs=1000)
    rate = {steps: error for steps, error, _ in found["rate"]}
    for K in (2, 5, 10):
        steps, error, count = found["few spikes"][K - 1]
        assert steps == K
        assert error == pytest.approx(rate[2**K - 1], rel=0.02)
        assert count < 0.52 * K + 0.3
    assert found["rate"][-1][2] > 500  # spikes
    drawn = error_against_steps(found | {"third": found["rate"], "fourth": found["rate"]})  # as many as there are
    assert [len(axes.get_lines()) for axes in drawn.axes] == [5, 4]


# Coefficients ---------------------------------------------------------------------------------------------------------


def test_what_is_shipped() -> None:
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == {
        "relu",
        "silu",
        "sigmoid",
        "gelu",
        "tanh",
        "hardswish",
        "hardsigmoid",
    }


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_tables_reach_their_stated_errors(path: Path) -> None:
    for given in load_tables(path.stem):
        again = measured(given.activation, given.range, given.table, 20_000)
        assert again.mse == pytest.approx(given.mse, rel=0.03)
        assert again.spikes == pytest.approx(given.spikes, rel=0.01)
        assert given.spikes <= max(0.51 * given.table.K, 1.5)


@pytest.mark.parametrize(
    ("activation", "K", "interval", "mse", "spikes_at_most"),
    [("silu", 16, (-8.0, 12.0), 3.4e-3 / 9, 4.2), ("sigmoid", 12, (-10.0, 10.0), 1.4e-4 / 9, 2.74)],
)
def test_they_are_nine_times_better_than_the_published_ones(
    activation: str, K: int, interval: tuple[float, float], mse: float, spikes_at_most: float
) -> None:
    (given,) = [fit for fit in load_tables(activation) if fit.table.K == K and fit.range == interval]
    found = measured(activation, interval, given.table)
    assert found.mse <= mse
    assert found.spikes <= spikes_at_most


def test_a_fit_follows_its_function_its_limit_and_its_seed(tmp_path: Path) -> None:
    first = fit_table("tanh", (-3.0, 3.0), 5, 2.0, rounds=60)
    assert first.mse < 0.01
    assert first.spikes < 2.3
    again = fit_table("tanh", (-3.0, 3.0), 5, 2.0, rounds=60)
    assert torch.equal(first.table.T, again.table.T)
    save_tables([first], tmp_path / "tanh.yaml")
    (back,) = load_tables("tanh", tmp_path)
    for part, same in zip(back.table, first.table, strict=True):
        torch.testing.assert_close(part, same, rtol=1e-7, atol=1e-7)
    right = fit_table("tanh", (-3.0, 3.0), 4, 2.0, rounds=60, density=lambda x: (x > 0).float() + 1e-6)
    x = torch.linspace(0.01, 3, 500, dtype=torch.float64)
    assert (decode(x, right.table) - x.tanh()).square().mean() < 0.005


# Networks -------------------------------------------------------------------------------------------------------------


class Squeezed(nn.Module):
    """SiLU, squeeze and excitation, a residual addition, max pooling between sites."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.down, self.up, self.fc, self.act = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 5), nn.SiLU(inplace=True)

    def forward(self, x):
        a = self.act(self.a(x))
        b = F.silu(self.b(a))
        gate = torch.sigmoid(self.up(F.silu(self.down(b.mean((2, 3))))))
        b = a + b * gate[:, :, None, None]
        return self.fc(torch.relu(self.c(F.max_pool2d(b, 2))).mean((2, 3)))


@pytest.fixture(scope="module")
def squeezed() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = Squeezed().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= 2
    return net, torch.randn(64, 3, 8, 8)


class TestSmoothActivations(ConversionContract):
    T = 16

    @pytest.fixture(autouse=True, params=[nn.SiLU, nn.Sigmoid])
    def _option(self, request: pytest.FixtureRequest) -> None:
        self.kind = request.param

    def make(self) -> FewSpikeConversion:
        return FewSpikeConversion()

    def activation(self) -> nn.Module:
        return self.kind()


class TestCorrectionsOfNumbers(CorrectionContract):
    T = 3

    @pytest.fixture(autouse=True, params=[Bias, Weights])
    def _option(self, request: pytest.FixtureRequest) -> None:
        self.make = request.param

    def method(self) -> FewSpikeConversion:
        return FewSpikeConversion()


@pytest.mark.parametrize("per_channel", [False, True])
def test_logits_of_a_network_with_silu_and_squeeze_and_excitation(
    squeezed: tuple[nn.Module, torch.Tensor], per_channel: bool
) -> None:
    net, x = squeezed
    errors = []
    for K in (6, 10, 16):
        snn, _ = convert(net, x, FewSpikeConversion(per_channel), K)
        expected = net(x).detach()
        errors.append(float((snn(x) - expected).norm() / expected.norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] < 0.2
    assert errors[2] < 0.03


def test_batched_and_streamed_answers_agree(squeezed: tuple[nn.Module, torch.Tensor]) -> None:
    net, x = squeezed
    snn, _ = convert(net, x, FewSpikeConversion(), 8)
    assert isinstance(snn, Decoded)
    assert snn.depth == 5  # a, b, squeeze, gate, c
    for n in (1, 4, 9):
        streamed = list(snn.stream(x[:n]))
        assert len(streamed) == n
        torch.testing.assert_close(torch.cat(streamed), snn(x[:n]), rtol=1e-5, atol=1e-5)
    assert torch.equal(snn.at(x[:3], [8])[0], snn(x[:3], 8))
    with pytest.raises(InvalidValue, match="T=4"):
        snn(x, 4)


def test_what_an_inference_costs() -> None:
    """A network of two layers, counted by hand."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x, K = torch.randn(50, 4), 5
    source, network = rewrite(net, x, vocabulary=NUMBERS)
    walk(source, network, x, K, FewSpikeConversion())
    snn = Decoded(network, K)
    layers, account = snn.examine(source, x, K)
    count = network.get_submodule("2").spikes(net[1](x)).sum(0)
    assert account.neurons == 6
    assert account.spikes == pytest.approx(float(count.sum()) / 50)
    assert account.synaptic_operations == pytest.approx(3 * account.spikes)
    assert account.ann_macs == 24 + 18
    assert account.energy_nj == pytest.approx(4.6e-3 * 24 + 0.9e-3 * account.synaptic_operations)
    assert account.more == {
        "at_most_two": pytest.approx(float((count <= 2).float().mean())),
        "parameters": 51,
        "layers": 2,
        "interval": 2 * K,
    }
    assert account.latency == 2 * K
    assert layers[0].silent == pytest.approx(float((count == 0).float().mean()))
    assert layers[0].error == pytest.approx(float((network.get_submodule("2")(net[1](x)) - net[:3](x)).square().mean()))
    shares = slots.counts(snn, x)
    assert shares.tolist() == pytest.approx([float((count == k).float().mean()) for k in range(K + 1)])


class Bottleneck(nn.Module):
    """A number, without an activation, between two layers; then half of a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.narrow, self.wide, self.end = (nn.Linear(*size) for size in ((4, 6), (6, 2), (2, 8), (4, 3)))

    def forward(self, x):
        wide = torch.relu(self.wide(self.narrow(torch.relu(self.a(x)))))
        return self.end(wide.chunk(2, 1)[0])


def test_numbers_cost_multiply_accumulates_and_a_half_costs_half() -> None:
    net, x, K = Bottleneck().eval(), torch.randn(50, 4), 5
    source, network = rewrite(net, x, vocabulary=NUMBERS)
    walk(source, network, x, K, FewSpikeConversion())
    _, account = Decoded(network, K).examine(source, x, K)
    sites = [m for m in network.modules() if isinstance(m, FewSpike)]
    hidden, currents = sites[0](net.a(x)), [net.a(x)]
    currents.append(net.wide(net.narrow(hidden)))
    first, second = (float(site.spikes(c).sum()) / 50 for site, c in zip(sites, currents, strict=True))
    assert account.spikes == pytest.approx(first + second)
    assert account.synaptic_operations == pytest.approx(2 * first + 3 * second / 2)
    assert account.energy_nj == pytest.approx(4.6e-3 * (24 + 2 * 8) + 0.9e-3 * account.synaptic_operations)


def test_numbers_that_no_spikes_lead_to_are_counted() -> None:
    """Recordings shown by frame: their first layer hears numbers."""
    net = nn.Sequential(TimeMean(), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).eval()
    x = torch.rand(5, 4, 2, 6, 6)
    source, network = rewrite(net, x, vocabulary=NUMBERS)
    walk(source, network, x, 4, FewSpikeConversion())
    _, account = Decoded(network, 4).examine(source, x, 4)
    assert account.energy_nj == pytest.approx(4.6e-3 * 3 * 16 * 18 + 0.9e-3 * 2 * account.spikes, rel=1e-5)


def test_residual_networks_come_close_with_few_spikes() -> None:
    net = cifar_resnet((3, 16, 16), 10, nn.ReLU, depth=14, width=4, shortcut="A", readout="current").eval()
    x = torch.randn(48, 3, 16, 16)
    gap = {}
    for K in (4, 8):
        snn, records = convert(net, x, FewSpikeConversion(), K)
        assert len(records) == 13
        expected = net(x).detach()
        gap[K] = float((snn(x) - expected).abs().max() / expected.abs().max())
    assert gap[8] < 0.02
    assert gap[8] < gap[4] / 4


def test_torchvisions_resnet50_converts() -> None:
    net, x = torchvision.models.resnet50(num_classes=7).eval(), torch.randn(4, 3, 32, 32)
    snn, records = convert(net, x, FewSpikeConversion(), 10)
    assert len(records) == 49
    expected = net(x).detach()
    assert float((snn(x) - expected).norm() / expected.norm()) < 0.02


def test_torchvisions_efficientnet_converts() -> None:
    """B0, with the statistics of these images; each of its neurons follows its SiLU or sigmoid."""
    net, x = torchvision.models.efficientnet_b0(num_classes=7), torch.randn(8, 3, 32, 32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net.train()(x)
    source, network = rewrite(net.eval(), x[:2], vocabulary=NUMBERS)
    records = walk(source, network, x, 16, FewSpikeConversion())
    assert len(records) == 65
    errors: dict[str, float] = {}

    def compare(name: str, f: nn.Module) -> object:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            wanted = f(inputs[0])
            errors[name] = float((output - wanted).square().mean() / wanted.square().mean())

        return hook

    for name, module in network.named_modules():
        if isinstance(module, FewSpike):
            module.register_forward_hook(compare(name, source.get_submodule(name)))
    assert Decoded(network, 16)(x).isfinite().all()
    assert len(errors) == 65
    assert max(errors.values()) < 0.2, max(errors.items(), key=lambda item: item[1])
    assert sum(errors.values()) / 65 < 0.02


def test_calibration_lowers_the_error_of_few_steps() -> None:
    net = cifar_resnet((3, 8, 8), 10, nn.ReLU, depth=8, width=4, shortcut="B", readout="current").eval()
    x = torch.randn(64, 3, 8, 8)
    plain, better = (
        convert(net, x, FewSpikeConversion(), 3, corrections)[0] for corrections in ([], [Bias(), Weights()])
    )
    assert (better(x) - net(x)).square().mean() < 0.8 * (plain(x) - net(x)).square().mean()


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(torch.relu(self.norm(F.silu(self.a(x)))))


def seq(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), activation, nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("net", "K", "words"),
    [
        (Normed, 8, ["layer norm (LayerNorm)", "elementwise"]),
        (lambda: seq(nn.Softsign()), 8, ["layer 1 (Softsign)", "K = 8", "task=fit_few_spike task.activation=softsign"]),
        (
            lambda: seq(nn.LeakyReLU(0.5)),
            8,
            ["layer 1 (LeakyReLU(negative_slope=0.5))", "other parameters", "leaky_relu"],
        ),
        (lambda: seq(nn.Softplus(beta=0.2)), 8, ["layer 1 (Softplus(beta=0.2", "other parameters"]),
        (lambda: seq(nn.SiLU()), 7, ["layer 1 (SiLU)", "K = 7", "conversion.tables"]),
    ],
)
def test_what_cannot_be_served_is_told_by_the_layer(net: Callable[[], nn.Module], K: int, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        convert(net().eval(), torch.randn(4, 8), FewSpikeConversion(), K)
    for word in words:
        assert word in str(error.value)


# The command line -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("environment")
class TestFitting(TaskContract):
    @pytest.fixture(autouse=True)
    def _command(self, tmp_path: Path) -> None:
        (tmp_path / "inputs.csv").write_text("x,weight\n-3,1\n0,3\n3,1\n")
        fitted = ("task.activation=softplus", "task.K=[3,4]", "task.range=[-3,3]", "task.rounds=20")
        self.command = ("task=fit_few_spike", *fitted, f"task.distribution={tmp_path / 'inputs.csv'}")

    def kept(self, run: Path, result: dict[str, float]) -> None:
        assert result["mse_K4"] < 0.2
        assert {path.name for path in (run / "figures").iterdir()} == {"approximation.png", "error.png", "raster.png"}
        rows = list(csv.DictReader((run / "tables" / "fit.csv").open()))
        assert [int(row["K"]) for row in rows] == [3, 4]
        snn, _ = convert(seq(nn.Softplus()).eval(), torch.randn(20, 8), FewSpikeConversion(tables=str(run)), 4)
        assert snn(torch.randn(2, 8)).shape == (2, 2)


TINY = (
    "model.width=4",
    "dataset=digits",
    "neuron=relu",
    "loss=cross_entropy",
    "trainer.epochs=1",
    "trainer.threads=1",
    "calibration.images=32",
    "task.layer_images=16",
    "task.test_images=40",
    "conversion=few_spike",
    "tracking=none",
)


@pytest.mark.usefixtures("environment")
class TestPapersTable(TaskContract):
    command = ("task=few_spike", "model=resnet8", "task.depths=[8]", "timesteps=6", *TINY)

    def kept(self, run: Path, result: dict[str, float]) -> None:
        rows = list(csv.DictReader((run / "tables" / "few_spike.csv").open()))
        assert [(row["network"], row["layers"], row["neurons"], row["latency"]) for row in rows] == [
            ("resnet8", "8", "1152", "48")
        ]
        for row in rows:
            assert abs(float(row["ann_top1"]) - float(row["snn_top1"])) <= 0.1
            assert float(row["spikes"]) == pytest.approx(int(row["neurons"]) * float(row["spikes_per_neuron"]))
        assert len(list(csv.DictReader((run / "tables" / "coefficients_resnet8.csv").open()))) == 7 * 6
        assert result["test/snn_top1_resnet8"] == float(rows[0]["snn_top1"])


def test_conversion_from_the_command_line(snnexp: Callable[..., Done]) -> None:
    done = snnexp("task=convert", "model=convnet", "model.pooling=max", "timesteps=[3,6]", "task.val_images=40", *TINY)
    assert done.code == 0, done.err
    result = done.result()
    assert abs(result["test/snn_accuracy_T6"] - result["test/ann_accuracy"]) <= 0.1
    assert result["val/interval_T3"] == 6
    assert 0 < result["val/spikes_per_neuron_T3"] < result["val/spikes_per_neuron_T6"] < 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["task=fit_few_spike", "task.activation=nonsense"], ["task.activation=nonsense", "silu"]),
        (["task=fit_few_spike", "task.K=0"], ["task.K=0", ">= 1"]),
        (["task=fit_few_spike", "task.K=[]"], ["task.K=[]", ">= 1"]),
        (["task=fit_few_spike", "task.range=5"], ["task.range=5", "two numbers"]),
        (["task=fit_few_spike", "task.range=[3,1]"], ["task.range=[3, 1]", "low < high"]),
        (["task=fit_few_spike", "task.distribution=nowhere.csv"], ["task.distribution=nowhere.csv", "columns x"]),
        (
            ["task=convert", "model=convnet", *TINY, "conversion.tables=/nowhere", "timesteps=4"],
            ["conversion.tables=/nowhere", "a folder"],
        ),
        (["task=few_spike", "model=convnet", *TINY, "task.depths=[8]", "timesteps=4"], ["task.depths=[8]", "no depth"]),
        (["task=few_spike", "model=resnet8", *TINY, "conversion=max_threshold"], ["conversion=few_spike"]),
    ],
)
def test_wrong_requests_are_refused(snnexp: Callable[..., Done], arguments: list[str], words: list[str]) -> None:
    done = snnexp(*arguments)
    assert done.code == 1
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err
    assert not done.runs()


class Called(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 6), function

    def forward(self, x):
        return self.function(self.layer(x))


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=lambda row: row.name)
def test_every_activation_is_found_as_module_and_as_function(activation: Activation) -> None:
    x = torch.linspace(-3, 3, 48).view(12, 4)
    assert activation.function(x).shape == x.shape
    for net in (nn.Sequential(nn.Linear(4, 6), activation.module()), Called(activation.function)):
        source, network = rewrite(net.eval(), x, vocabulary=NUMBERS)
        (site,) = Flow(network).sites
        found = source.get_submodule(str(site.target))
        inner = found[0] if isinstance(found, Curve) else found
        assert of_module(inner) is activation
        assert torch.equal(inner(x), activation.function(x))
    with pytest.raises(InvalidValue, match="activation='nothing'"):
        named("nothing")
