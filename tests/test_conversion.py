"""ANN to SNN: closed forms, identities on real networks, SpikingJelly as oracle, and a contract over everything."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from mlflow.pytorch import load_model
from torch import Tensor, nn

from conftest import ROOT, Done
from snnexp.build import build
from snnexp.calibration.base import Calibration
from snnexp.calibration.bias import Bias
from snnexp.calibration.potential import Potential
from snnexp.calibration.weights import Weights
from snnexp.conversion.adaptive_threshold import AdaptiveThreshold
from snnexp.conversion.flow import Flow
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.measure import split_error
from snnexp.conversion.network import Converted, convert
from snnexp.conversion.neuron import MaxGate, ScaledIF
from snnexp.conversion.qcfs import QCFSConversion
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.threshold_shift import ThresholdShift
from snnexp.conversion.trains import packed, unpacked
from snnexp.conversion.walk import Correction, Method, walk
from snnexp.dynamics import clip_floor
from snnexp.errors import InvalidValue, UserError
from snnexp.model.resnet import cifar_resnet
from snnexp.neuron.clip import Clip
from snnexp.neuron.qcfs import QCFS
from snnexp.testing import ConversionContract, CorrectionContract

CONVERSIONS = sorted(p.stem for p in (ROOT / "conf" / "conversion").glob("*.yaml"))
CALIBRATIONS = sorted(p.stem for p in (ROOT / "conf" / "calibration").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def settings(group: str, option: str) -> dict[str, object]:
    """An option's YAML, with what it builds on."""
    from omegaconf import OmegaConf

    chosen = OmegaConf.load(ROOT / "conf" / group / f"{option}.yaml")
    for base in chosen.pop("defaults", []):
        chosen = OmegaConf.merge(OmegaConf.load(ROOT / "conf" / group / f"{base}.yaml"), chosen)
    if group == "calibration":
        chosen.available.weights_sgd.update(iterations=20, lr=1e-3)  # 5,000 by default
    return OmegaConf.to_container(OmegaConf.create({"seed": 0, group: chosen}), resolve=True)


# Each correction, with a calibration that lists it.
CORRECTIONS = {
    name: option for option in CALIBRATIONS for name in settings("calibration", option)["calibration"]["available"]
}


def shaken(net: nn.Module) -> nn.Module:
    """With BatchNorm statistics that do something, in evaluation mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.2)
    return net.eval()


def resnet8(neuron: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    return shaken(cifar_resnet((3, 8, 8), 10, neuron, depth=8, width=4, shortcut="B", readout="current"))


# Awkward networks -----------------------------------------------------------------------------------------------------


class Awkward(nn.Module):
    """Two convolutions and a linear layer; a subclass says how they are joined."""

    activation: type[nn.Module] = nn.ReLU

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.act, self.fc = nn.BatchNorm2d(4), self.activation(), nn.Linear(4, 5)

    def head(self, x):
        return self.fc(x.mean((2, 3)))


class Functional(Awkward):
    def forward(self, x):
        x = F.relu(self.norm(self.a(x)))
        x = torch.relu(self.b(x)).relu()
        x.relu_()
        return self.fc(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))


class Reused(Awkward):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)

    def forward(self, x):
        x = self.act(self.a(x))
        return self.head(F.dropout(self.act(self.b(self.drop(x))), 0.5, self.training))


class Added(Awkward):
    def forward(self, x):
        a = self.act(self.a(x))
        b = F.relu6(self.b(a), inplace=True)
        b += a
        return self.head(F.relu(b * 0.5))


class Concatenated(Awkward):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        a = self.act(self.a(x))
        return self.head(F.avg_pool2d(torch.cat([a, torch.clamp(self.b(a), 0, 2)], 1), 2))


class NormAfterAdd(Awkward):
    def forward(self, x):
        a = self.a(x)
        return self.head(self.act(self.norm(self.b(F.relu(a)) + a)))


class Depthwise(Awkward):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.act6 = nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.ReLU6()
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.act6(self.norm(self.b(self.act(self.a(x))))))


class QuantisedAndClipped(Awkward):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.c = QCFS(L=4, lam=1.5), Clip(1.5)

    def forward(self, x):
        return self.head(self.c(self.b(self.q(self.a(x)))))


OURS = [Functional, Reused, Added, Concatenated, NormAfterAdd, Depthwise, QuantisedAndClipped]
THEIRS = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(width_mult=0.1, num_classes=5),  # ReLU6, depthwise
    "shufflenet": lambda: torchvision.models.ShuffleNetV2([1, 1, 1], [8, 8, 16, 32, 32], num_classes=5),  # chunk, cat
    "densenet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5),  # concatenation, norm before ReLU
}


def small_resnet() -> nn.Module:
    """torchvision's residual network, cut to its first stage: reused in-place ReLU, max pooling."""
    net = torchvision.models.resnet18(num_classes=5)
    net.layer2 = net.layer3 = net.layer4 = nn.Identity()
    net.fc = nn.Linear(64, 5)
    return net


THEIRS["resnet"] = small_resnet


# Closed forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("theta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("start", [0.0, 0.25, 0.5, 1.0])
def test_a_site_under_constant_input_is_the_clip_floor(T: int, theta: float, start: float) -> None:
    x = torch.arange(-2, 4, 1 / 64, dtype=torch.float64).view(-1, 1)  # dyadic: exact multiples of theta / T among them
    at = torch.full((1, 1), theta, dtype=torch.float64)
    out, v = ScaledIF(at, start * at).scan(x.expand(T, *x.shape), None)
    assert torch.equal(out.mean(0), clip_floor(x + start * theta / T, theta, T)), (T, theta, start)
    assert torch.equal(v, start * theta + T * x - out.sum(0))


def test_elsewhere_than_in_dyadic_numbers_one_spike_of_slack_is_enough() -> None:
    x, theta, T = torch.linspace(-1, 2, 997).view(-1, 1), torch.full((1, 1), 0.7), 10
    out, _ = ScaledIF(theta).scan(x.expand(T, *x.shape), None)
    gap = (out.mean(0) - clip_floor(x, 0.7, T)).abs()
    assert gap.max() <= 0.7 / T * 1.001
    assert (gap > 1e-6).float().mean() < 0.01


@pytest.mark.parametrize("form", ["potential", "bias"])
def test_threshold_shift_removes_the_mean_flooring_error(form: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False), Clip(1.0), nn.Linear(1, 1, bias=False))
    for layer in (net[1], net[3]):
        layer.weight.data.fill_(1.0)
    x, T = (torch.arange(2000) + 0.5).div(2000).view(-1, 1), 5  # uniform on [0, 1]
    plain, _ = convert(net, x, MaxThreshold(), T)
    shifted, _ = convert(net, x, ThresholdShift(form), T)
    with torch.no_grad():
        assert (net(x) - plain(x)).mean().item() == pytest.approx(1 / (2 * T), abs=2e-3)
        assert (net(x) - shifted(x)).mean().item() == pytest.approx(0, abs=2e-3)


def test_qcfs_equals_its_ann_where_inputs_arrive_evenly() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 16), QCFS(L=4, lam=2.0), nn.Linear(16, 3)).double()
    for layer in (net[1], net[3]):
        layer.weight.data = (layer.weight.data * 64).round() / 64
        layer.bias.data = (layer.bias.data * 64).round() / 64
    x = torch.randint(-64, 64, (200, 8)).double() / 16
    snn, _ = convert(net, x, QCFSConversion(), T=4)
    assert torch.equal(snn(x), net(x))
    deep = nn.Sequential(*net[:3], nn.Linear(16, 16), QCFS(L=4, lam=2.0)).double()
    evenly, _ = convert(deep, x, QCFSConversion(), T=4)
    assert not torch.equal(evenly(x), deep(x)), "spikes do not arrive evenly: the second layer may differ"


def test_adaptive_threshold_is_the_best_grid_point() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    x, T, grid = torch.randn(500, 4), 4, 20
    snn, _ = convert(net, x, AdaptiveThreshold(grid=grid), T)
    found = float(snn.flow.module(snn.flow.sites[0]).theta.max())
    with torch.no_grad():
        z = net[:2](x)
    candidates = z.max() * torch.arange(1, grid + 1) / grid
    errors = torch.stack([(clip_floor(z + c / (2 * T), c, T) - z.relu()).square().mean() for c in candidates])
    assert found == pytest.approx(float(candidates[errors.argmin()]), rel=1e-5)


def test_a_percentile_and_a_scale_of_the_maximum() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    x = torch.randn(400, 3)
    with torch.no_grad():
        a = net[:3](x)
    for per_channel, expected in ((False, a.quantile(0.9)), (True, a.quantile(0.9, dim=0))):
        method = MaxThreshold(percentile=90.0, scale=0.5, per_channel=per_channel)
        snn, _ = convert(net, x, method, 4)
        theta = snn.flow.module(snn.flow.sites[0]).theta[0]
        torch.testing.assert_close(theta, (0.5 * expected).expand(5), rtol=0, atol=2e-2 * float(a.max()))


def test_gated_max_pooling_is_exact_in_the_mean() -> None:
    gate, train = MaxGate(nn.MaxPool2d(2)), (torch.rand(16, 3, 2, 6, 6) < 0.4).float()
    out, state = gate.scan(train, None)
    assert torch.equal(out.sum(0), F.max_pool2d(train.sum(0), 2))
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    first, half = gate.scan(train[:5], None)
    second, whole = gate.scan(train[5:], half)
    assert torch.equal(torch.cat([first, second]), out)
    assert torch.equal(whole[0], state[0])


@pytest.mark.parametrize("T", [1, 7, 8, 9, 33])
def test_packed_trains_come_back(T: int) -> None:
    train = (torch.rand(T, 3, 4, 2) < 0.5).float() * 0.3
    bits = packed(train)
    assert bits.shape == (-(-T // 8), 3, 4, 2)
    assert torch.equal(unpacked(bits, T, torch.float32) * 0.3, train)


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neuron", [nn.ReLU, lambda: Clip(1.0), lambda: QCFS(4, 1.0)], ids=["relu", "clip", "qcfs"])
def test_every_layer_keeps_its_books(neuron: Callable[[], nn.Module]) -> None:
    """phi = cbar - (v(T) - v(0))/T, and the parts of the error sum to the error, on every layer of a residual net."""
    net, x, T = resnet8(neuron), torch.randn(6, 3, 8, 8), 6
    source, network = rewrite(net, x)
    walk(source, network, x, T, AdaptiveThreshold(), [Bias(), Potential()])
    ann, flow = Flow(source), Flow(network)
    values, env, state = {ann.placeholder: x}, {flow.placeholder: x}, {}
    with torch.no_grad():
        ann.run(ann.nodes[1:-1], values)
        flow.run(flow.head[1:], env)
        flow.run(flow.body, env, T, state)
    assert len(flow.sites) == 7
    for site, twin in zip(flow.sites, ann.sites, strict=True):
        neuron_, before, v = flow.module(site), site.args[0], state[site]
        c = (env[before].unflatten(0, (T, -1)).mean(0) if before in flow.timed else env[before]) + neuron_.bias
        phi = env[site].unflatten(0, (T, -1)).mean(0)
        torch.testing.assert_close(phi, c - (v - neuron_.v_init) / T, rtol=0, atol=1e-5)
        count, z = (phi * T / neuron_.theta).round(), values[twin.args[0]]
        parts = split_error(c, z, v, count, neuron_.theta, T, ann.module(twin))
        total = parts["unevenness"] + parts["quantisation"] + parts["clipping"] + parts["propagated"]
        torch.testing.assert_close(total, phi - values[twin], rtol=0, atol=1e-5)
        torch.testing.assert_close(parts["error"], phi - values[twin], rtol=0, atol=1e-5)
        inside = (v >= 0) & (v < neuron_.theta)
        assert inside.any()
        assert parts["unevenness"][inside].abs().max() < 1e-5
        assert torch.equal((parts["clipping"] != 0).any(), torch.tensor(isinstance(ann.module(twin), nn.ReLU))) or bool(
            (c <= neuron_.theta).all()
        )


def test_the_table_by_layer_counts_what_was_emitted() -> None:
    net, x, T = resnet8(), torch.randn(5, 3, 8, 8), 4
    source, network = rewrite(net, x)
    walk(source, network, x, T, MaxThreshold())
    layers, account = Converted(network, T).examine(source, x, T)
    assert [layer.layer for layer in layers] == [str(n.target) for n in Flow(network).sites]
    assert account.neurons == 3 * 4 * 64 + 2 * 8 * 16 + 2 * 16 * 4
    mean_rate = account.spikes / account.neurons / T
    assert account.spikes_per_neuron == pytest.approx(account.spikes / account.neurons)
    assert 0 < mean_rate < 1
    macs = sum(m.weight.numel() * side**2 for m, side in _convolutions(net)) + net.linear.weight.numel()
    assert account.ann_macs == pytest.approx(macs)
    assert account.synaptic_operations < T * macs
    first = net.conv.weight.numel() * 64
    assert account.energy_nj == pytest.approx(4.6e-3 * first + 0.9e-3 * account.synaptic_operations)


def _convolutions(net: nn.Module) -> list[tuple[nn.Module, int]]:
    sides: list[tuple[nn.Module, int]] = []
    handles = [
        m.register_forward_hook(lambda m, _, out: sides.append((m, out.shape[-1])))
        for m in net.modules()
        if isinstance(m, nn.Conv2d)
    ]
    with torch.no_grad():
        net(torch.randn(1, 3, 8, 8))
    for handle in handles:
        handle.remove()
    return sides


# The converted network as a module ------------------------------------------------------------------------------------


def test_streaming_saving_and_loading_change_nothing(tmp_path: Path) -> None:
    net, x, T = resnet8(), torch.randn(7, 3, 8, 8), 6
    snn, _ = convert(net, x, AdaptiveThreshold(), T, [Bias(), Potential()])
    whole = snn(x)
    assert whole.shape == (7, 10)
    streamed = [y for y, _ in zip(snn.stream(x), range(T), strict=False)]
    for t, (y, at) in enumerate(zip(streamed, snn.at(x, range(1, T + 1)), strict=True), 1):
        torch.testing.assert_close(y, snn(x, t), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(at, snn(x, t), rtol=1e-4, atol=1e-5)
    for rows in (1, 4, 1000):  # however it is cut into pieces
        torch.testing.assert_close(Converted(snn.network, T, rows)(x), whole, rtol=1e-4, atol=1e-5)
    file = io.BytesIO()
    torch.save(snn, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), whole)
    other, _ = convert(net, x, MaxThreshold(), T)
    assert not torch.equal(other(x), whole)
    other.load_state_dict(snn.state_dict())
    assert torch.equal(other(x), whole)
    assert torch.equal(copy.deepcopy(snn)(x), whole)
    assert snn.double()(x.double()).dtype == torch.float64
    with pytest.raises(InvalidValue, match="T=0"):
        snn(x, 0)


def test_feature_maps_and_regression_heads_are_no_classifiers() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            a = torch.relu(self.a(x))
            return {"features": a, "map": torch.sigmoid(self.b(F.interpolate(a, scale_factor=2.0))), "size": x.shape[2]}

    net, x = Maps().eval(), torch.randn(9, 3, 6, 6)
    snn, _ = convert(net, x, MaxThreshold(start=0.5), 64)
    out, expected = snn(x), net(x)
    assert out["size"] == 6
    for name in ("features", "map"):
        assert out[name].shape == expected[name].shape
        assert (out[name] - expected[name]).abs().max() < 0.1


def test_one_walk_serves_many_images_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds, corrections and results do not depend on how many images are in memory at a time."""
    from snnexp.conversion import walk as module

    net, x = resnet8().double(), torch.randn(20, 3, 8, 8, dtype=torch.float64)
    results = []
    for rows, in_memory in ((8, 0), (512, 2**28)):  # 0: everything in mapped files
        monkeypatch.setattr(module, "CALIBRATION_ROWS", {"cpu": rows})
        monkeypatch.setattr(module, "IN_MEMORY", in_memory)
        seen: list[str] = []
        snn, records = convert(
            net,
            x,
            AdaptiveThreshold(),
            5,
            [Bias(), Potential()],
            lambda done, layers, name, seen=seen: seen.append(f"{done}/{layers} {name}"),
        )
        assert seen[0] == "0/8 neuron"
        assert seen[-1] == "7/8 output"
        results.append((snn(x), [r.theta for r in records]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-9)
    assert results[0][1] == pytest.approx(results[1][1])


# Oracle ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        resnet8,
        lambda: shaken(
            nn.Sequential(
                nn.Conv2d(3, 8, 3),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.AvgPool2d(2),
                nn.Conv2d(8, 8, 3),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(8, 5),
            )
        ),
    ],
    ids=["resnet", "plain"],
)
def test_max_threshold_is_spikingjellys_rate_coding_spike_for_spike(make: Callable[[], nn.Module]) -> None:
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.ann2snn import FXConverter, RateCodingRecipe

    net, x, T = make().double(), torch.randn(16, 3, 8, 8, dtype=torch.float64), 12
    snn, _ = convert(net, x, MaxThreshold(), T)
    theirs = FXConverter(RateCodingRecipe([(x, None)], mode="Max"), device="cpu").convert(copy.deepcopy(net)).eval()
    functional.set_step_mode(theirs, "s")
    spikes: dict[str, list[torch.Tensor]] = {}
    for name, module in theirs.named_modules():
        if isinstance(module, neuron.IFNode):
            module.register_forward_hook(lambda m, i, out, name=name: spikes.setdefault(name, []).append(out.detach()))
    with torch.no_grad():
        functional.reset_net(theirs)
        outputs = torch.stack([theirs(x) for _ in range(T)])
        env, flow = {snn.flow.placeholder: x}, snn.flow
        flow.run(flow.head[1:], env)
        flow.run(flow.body, env, T, {})
    ours = [env[site].unflatten(0, (T, -1)) / flow.module(site).theta for site in flow.sites]
    assert len(ours) == len(spikes)
    for mine, other in zip(ours, spikes.values(), strict=True):
        assert torch.equal(mine.round(), torch.stack(other))
    torch.testing.assert_close(snn(x), outputs.mean(0), rtol=1e-4, atol=1e-6)  # their scalers are float32


# Contract -------------------------------------------------------------------------------------------------------------


def test_none_is_missing() -> None:
    assert set(CONVERSIONS) >= {"adaptive_threshold", "few_spike", "max_threshold", "qcfs", "threshold_shift"}
    assert set(CALIBRATIONS) >= {"advanced", "best", "bias", "light", "none", "potential", "weights"}
    assert set(CORRECTIONS) >= {"bias", "potential", "threshold", "weights"}


class TestEveryConversion(ConversionContract):
    @pytest.fixture(autouse=True, params=CONVERSIONS)
    def _option(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param
        self.T = 8 if self.name == "few_spike" else 64

    def make(self) -> Method:
        return build("conversion", settings("conversion", self.name), Method)

    def activation(self) -> nn.Module:
        return QCFS(8, 1.0) if self.name == "qcfs" else nn.ReLU()


class TestEveryCorrection(CorrectionContract):
    @pytest.fixture(autouse=True, params=CORRECTIONS)
    def _option(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param

    def make(self) -> Correction:
        config = settings("calibration", CORRECTIONS[self.name])
        config["calibration"]["steps"] = [self.name]
        (correction,) = build("calibration", config, Calibration).corrections
        return correction


# The larger networks see each conversion, and calibrations of each kind, not each pair.
FEW = [
    ("max_threshold", "none"),
    ("threshold_shift", "light"),
    ("adaptive_threshold", "advanced"),
    ("adaptive_threshold", "best"),
    ("qcfs", "none"),
]
CASES = [
    (conversion, calibration, kind)
    for conversion in CONVERSIONS
    for calibration in CALIBRATIONS
    for kind in [*OURS, *THEIRS]
    if kind in OURS or (conversion, calibration) in FEW
]


@pytest.mark.parametrize(
    ("conversion", "calibration", "kind"), CASES, ids=lambda k: k if isinstance(k, str) else k.__name__
)
def test_every_conversion_and_calibration_of_awkward_networks(conversion: str, calibration: str, kind: object) -> None:
    """It runs, follows the ANN, raises no objective, and leaves the caller's network bit for bit as it was."""
    net = shaken(THEIRS[kind]() if isinstance(kind, str) else kind())
    images = torch.randn(4, 3, 16, 16) if isinstance(kind, str) else torch.randn(24, 3, 8, 8)
    before, with_grad = copy.deepcopy(net.state_dict()), [p.requires_grad for p in net.parameters()]
    method = build("conversion", settings("conversion", conversion))
    method.maxpool = "gate"
    calibrated = build("calibration", settings("calibration", calibration), Calibration)
    corrections, keep = calibrated.corrections, calibrated.keep
    if conversion == "qcfs" and kind is not QuantisedAndClipped:
        with pytest.raises(UserError, match=r"conversion=qcfs takes its thresholds .* layer [\w.]+ has a"):
            convert(net, images, method, 4, corrections, keep=keep)
    else:
        snn, records = convert(net, images, method, 4, corrections, keep=keep)
        out, expected = snn(images), net(images).detach()
        assert out.shape == expected.shape
        assert out.isfinite().all()
        for record in records:
            for kept in record.corrections if calibrated.keep == "better" else ():
                assert kept.after <= kept.before, (record.name, kept)
        if calibration == "none" and method.per_T is False:
            near = snn(images, 512)
            slack = 0.1 if conversion == "max_threshold" else 0.15
            assert (near - expected).abs().mean() < slack * expected.abs().mean() + 0.02, "it does not follow the ANN"
        assert len(records) - (1 if corrections else 0) == len(snn.flow.sites)
    after = net.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert [p.requires_grad for p in net.parameters()] == with_grad


def test_corrections_lower_the_error_of_the_output() -> None:
    net, x = resnet8(), torch.randn(64, 3, 8, 8)
    errors = {}
    for name in ("none", "light", "advanced", "best"):
        corrections = build("calibration", settings("calibration", name)).corrections
        snn, _ = convert(net, x, AdaptiveThreshold(), 4, corrections)
        errors[name] = float((snn(x) - net(x).detach()).square().mean())
    assert errors["light"] < errors["none"]
    assert errors["advanced"] < errors["light"]
    assert errors["best"] < errors["light"]


# What cannot be converted ---------------------------------------------------------------------------------------------


class Branching(Awkward):
    def forward(self, x):
        x = self.act(self.a(x))
        return self.head(x if x.sum() > 0 else -x)


class Gated(Awkward):
    def forward(self, x):
        x = self.act(self.a(x))
        return self.head(x * torch.sigmoid(self.b(x)))


class Swish(Awkward):
    activation = nn.SiLU

    def forward(self, x):
        return self.head(self.act(self.b(F.relu(self.a(x)))))


class OtherName(Awkward):
    def forward(self, x):
        x = self.act(self.a(x))
        view = x.view(-1)
        view.mul_(2)  # changes x as well, which a trace does not see
        return self.head(x)


class BatchNormOfBatch(Awkward):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        return self.head(self.norm(self.b(F.relu(self.a(x)))))


class TwoInputs(Awkward):
    def forward(self, x, y):
        return self.head(self.act(self.a(x)) + y)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Branching, ["cannot be traced", "control flow"]),
        (Gated, ["sigmoid", "cannot be converted"]),
        (Swish, ["layer act (SiLU)", "neuron=relu, clip or qcfs"]),
        (OtherName, ["answers otherwise", "in place"]),
        (BatchNormOfBatch, ["layer norm", "running statistics"]),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 2)), ["nothing to convert"]),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)),
            ["layer 2 is max pooling", "conversion.maxpool=gate", "conversion.maxpool=average"],
        ),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.LayerNorm(6), nn.ReLU()), ["layer 2 (LayerNorm)"]),
    ],
)
def test_what_cannot_be_converted_is_told_by_the_layer(net: Callable[[], nn.Module], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        convert(net().eval(), torch.randn(4, 3, 8, 8), MaxThreshold(), 4)
    for word in words:
        assert word in str(error.value)


def test_two_inputs_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="takes 2 inputs"):
        rewrite(TwoInputs(), torch.randn(2, 3, 8, 8))


def test_max_pooling_before_the_first_site_is_the_anns_own() -> None:
    net = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    x = torch.randn(30, 3, 8, 8)
    snn, _ = convert(net, x, MaxThreshold(), 200)
    assert (snn(x) - net(x)).abs().max() < 0.1


@pytest.mark.parametrize(("maxpool", "bound"), [("gate", 0.05), ("average", 10.0)])
def test_ways_out_of_max_pooling(maxpool: str, bound: float) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).eval()
    x = torch.randn(30, 3, 8, 8)
    snn, _ = convert(net, x, MaxThreshold(maxpool=maxpool), 400)
    assert (snn(x) - net(x)).abs().max() < bound


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: MaxThreshold(percentile=0), "percentile"),
        (lambda: MaxThreshold(scale=0), "scale"),
        (lambda: MaxThreshold(start=2), "start"),
        (lambda: MaxThreshold(maxpool="max"), "maxpool"),
        (lambda: AdaptiveThreshold(grid=0), "grid"),
        (lambda: AdaptiveThreshold(inputs="both"), "inputs"),
        (lambda: ThresholdShift(form="both"), "form"),
        (lambda: MaxThreshold(per_channel=1), "per_channel"),
        (
            lambda: build(
                "calibration",
                settings("calibration", "none")
                | {"calibration": settings("calibration", "none")["calibration"] | {"steps": ["nope"]}},
            ),
            "steps",
        ),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], object], name: str) -> None:
    with pytest.raises((InvalidValue, UserError), match=name):
        make()


# The command line -----------------------------------------------------------------------------------------------------

TINY = (
    "model=convnet",
    "model.width=4",
    "dataset=digits",
    "neuron=relu",
    "loss=cross_entropy",
    "trainer.epochs=2",
    "trainer.threads=1",
    "calibration.images=64",
    "task.layer_images=16",
    "task.val_images=50",
    "task.test_images=60",
)


def test_convert_trains_its_ann_once_and_logs_what_the_design_names(snnexp: Callable[..., Done]) -> None:
    done = snnexp("task=convert", *TINY, "timesteps=[4,2]", "objective=val/snn_accuracy_T4")
    assert done.code == 0, done.err
    assert "epoch   2/2" in done.err
    result = done.result()
    for name in (
        "val/ann_accuracy",
        "test/ann_accuracy",
        "val/snn_accuracy_T2",
        "test/snn_accuracy_T4",
        "val/spikes_per_neuron_T4",
        "val/synaptic_operations_T4",
        "val/energy_nj_T4",
        "val/ann_energy_nj",
    ):
        assert name in result
    (run,) = done.runs()
    assert {"layers.csv", "model_T4.pt", "network_T4.pt", "corrections.json"} <= {p.name for p in run.iterdir()}
    assert {p.name for p in (run / "figures").iterdir()} == {"accuracy.png", "layers.png"}
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{done.outputs / 'mlflow.db'}")
    (tracked,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {m.step: m.value for m in client.get_metric_history(tracked.info.run_id, "test/snn_accuracy")} == {
        t: result[f"test/snn_accuracy_T{t}"] for t in (2, 4)
    }
    assert (tracked.data.tags["conversion"], tracked.data.tags["calibration"]) == ("max_threshold", "none")
    loaded = load_model(str(run / "mlflow" / "model"))
    assert loaded(torch.zeros(2, 1, 8, 8), 3).shape == (2, 10)

    again = snnexp(
        "task=calibrate",
        *TINY,
        "tracking=none",
        "timesteps=[2]",
        "conversion=adaptive_threshold",
        "calibration.steps=[bias,potential]",
    )
    assert again.code == 0, again.err
    assert "epoch" not in again.err, "the ANN was trained before"
    newest = max(again.runs(), key=lambda path: path.stat().st_mtime)
    calibrated = json.loads((newest / "result.json").read_text())
    assert calibrated["val/ann_accuracy"] == result["val/ann_accuracy"]
    assert {"val/plain_accuracy_T2", "test/snn_accuracy_T2"} <= set(calibrated)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["task=convert"], ["neuron=lif spikes already"]),
        (["task=convert", "dataset=digits", "model=convnet"], ["neuron=lif spikes already"]),
        (["task=convert", *TINY, "calibration=light"], ["calibration=light belongs to task=calibrate"]),
        (["task=calibrate", *TINY], ["needs corrections"]),
        (["task=convert", *TINY, "conversion=qcfs"], ["conversion=qcfs", "layer network.2", "neuron=qcfs"]),
        (["task=convert", *TINY, "model.pooling=max"], ["max pooling", "conversion.maxpool=gate"]),
        (["task=convert", *TINY, "timesteps=[4,0]"], ["timesteps=0", ">= 1"]),
        (["task=convert", *TINY, "timesteps=[]"], ["timesteps=[]"]),
        (
            ["task=convert", *TINY, "objective=val/snn_accuracy_T7", "timesteps=[4]"],
            ["objective=", "val/snn_accuracy_T4"],
        ),
        (["task=convert", *TINY, "calibration.images=5000"], ["calibration.images=5000", "training split"]),
        (["task=convert", *TINY, "conversion.scale=0"], ["conversion.scale=0", "> 0"]),
        (["task=convert", *TINY, "task.val_images=0"], ["task.val_images=0"]),
        (["task=calibrate", *TINY, "calibration.steps=[biass]"], ["calibration.steps", "bias, potential"]),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_trained(
    snnexp: Callable[..., Done], arguments: list[str], words: list[str]
) -> None:
    done = snnexp(*arguments)
    assert done.code == 1
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err
    assert not done.runs()


# -- networks that only look convertible, or only look inconvertible --------------------------------------------------


class Net(nn.Module):
    """Two convolutions and a linear layer; `f` says what happens in between."""

    def __init__(self, f: Callable[[Net, Tensor], Tensor], features: int = 4 * 36) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(features, 3)
        self.pos, self.f = nn.Parameter(torch.randn(1, 8)), f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


class SquaredReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


X8 = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda n, x: n.fc(n.hardtanh(n.b(F.relu(n.a(x)))).flatten(1)), "Hardtanh"),
        (lambda n, x: n.fc(n.squared(n.b(F.relu(n.a(x)))).flatten(1)), "square"),
        (lambda n, x: n.fc((F.relu(n.a(x)) - F.relu(n.a(x)).mean(0, keepdim=True)).flatten(1)), "mixes the samples"),
        (lambda n, x: n.fc(F.relu(n.a(x)).roll(1, 0).flatten(1)), "mixes the samples"),
        (lambda n, x: torch.cat([y := F.relu(n.a(x)), y]), "mixes the samples"),
        (lambda n, x: n.fc(F.relu(n.a(x)).flatten(1))[:, 0].relu(), "one number a sample"),
        (lambda n, x: F.adaptive_max_pool2d(F.relu(n.a(x)), 1), "conversion.maxpool=gate"),
        (lambda n, x: n.fc(F.relu(n.a(x)).view(12, -1)), "does not run on 2 samples"),
        (lambda n, x: n.fc(torch.div(F.relu(n.a(x)), 0.25, rounding_mode="floor").flatten(1)), "div .* cannot be"),
        (lambda n, x: n.fc((3 * F.relu(n.a(x))).to(torch.int32).float().flatten(1)), "to .* gives whole numbers"),
    ],
    ids=["hardtanh", "own relu", "mean", "roll", "cat", "one number", "max pooling", "frozen", "floor", "int"],
)
def test_what_only_looks_convertible_is_refused(f: Callable[[Net, Tensor], Tensor], words: str) -> None:
    net = Net(f)
    net.hardtanh, net.squared = nn.Hardtanh(), SquaredReLU()
    with pytest.raises(UserError, match=words):
        convert(net, X8, MaxThreshold(start=0.5), 4)


@pytest.mark.parametrize(
    "f",
    [
        lambda n, x: n.fc(F.relu(n.a(x) + torch.linspace(-1, 1, n.a(x).shape[-1]).view(1, 1, 1, -1)).flatten(1)),
        lambda n, x: n.fc((F.relu(n.a(x)).flatten(2) + n.pos[:, : x.size(1)].mean()).flatten(1)),
        lambda n, x: n.fc((F.relu(n.a(x)) + torch.linspace(0, 1, x.shape[-1] - 2)).flatten(1)),
        lambda n, x: n.fc(F.relu(input=n.a(input=x)).view(x.size(0), -1)),
        lambda n, x: n.fc((F.relu(n.a(x)) * torch.ones_like(n.a(x)[:1])).flatten(1)),
        lambda n, x: n.fc(F.relu(n.a(x)).flatten(1)).squeeze(-1),
        lambda n, x: n.fc(F.relu(n.a(x)).reshape(x.shape[:1] + (-1,))),  # noqa: RUF005
    ],
    ids=["sizes", "position", "sizes after a site", "keywords", "ones_like", "squeeze", "slice of sizes"],
)
def test_what_only_looks_inconvertible_is_converted(f: Callable[[Net, Tensor], Tensor]) -> None:
    net = Net(f)
    snn, _ = convert(net, X8, MaxThreshold(start=0.5), 256, [Bias(), Weights(), Potential()])
    with torch.no_grad():
        expected = net(X8)
        assert float((snn(X8) - expected).abs().mean() / expected.abs().mean()) < 0.02
        torch.testing.assert_close(snn(X8[:1]), snn(X8)[:1], rtol=1e-3, atol=1e-3)


SUMS: list[Callable[[Net, Tensor], Tensor]] = [
    lambda n, x: torch.add(y := F.relu(n.a(x)), n.b(y), alpha=0.1),
    lambda n, x: (z := n.b(F.relu(n.a(x)))) + z,
    lambda n, x: (y := F.relu(n.a(x))) + n.one(y),
    lambda n, x: n.b(y := F.relu(n.a(x))) * 1 + n.b2(y.mean((2, 3), keepdim=True)),
    lambda n, x: n.b(y := F.relu(n.a(x))) + y,
]


@pytest.mark.parametrize("corrections", [[], [Bias()], [Weights()]], ids=["none", "bias", "weights"])
@pytest.mark.parametrize("sums", SUMS, ids=["alpha", "twice", "broadcast", "broadcast layer", "plain"])
def test_a_bias_enters_a_layer_only_where_it_means_the_same(
    sums: Callable[[Net, Tensor], Tensor], corrections: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is that of the calibration, whose biases are at the neurons."""
    net = Net(lambda n, x: n.fc(F.relu(sums(n, x)).flatten(1)))
    net.one, net.b2 = nn.Conv2d(4, 1, 3, padding=1), nn.Conv2d(4, 4, 1)
    folded, _ = convert(net, X8, ThresholdShift(form="bias"), 4, corrections)
    monkeypatch.setattr("snnexp.conversion.walk.fold_biases", lambda flow: None)
    at_neurons, _ = convert(net, X8, ThresholdShift(form="bias"), 4, corrections)
    torch.testing.assert_close(folded(X8), at_neurons(X8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 9, 14])
def test_a_large_quantised_network_is_not_taken_for_another_one(seed: int) -> None:
    """Folding moves inputs by 1e-7, and in two of these three a unit lies so near to a step that it takes the next."""
    torch.manual_seed(seed)
    net = shaken(
        cifar_resnet((3, 32, 32), 10, lambda: QCFS(L=8, lam=4.0), depth=20, width=16, shortcut="A", readout="current")
    )
    x = torch.randn(4, 3, 32, 32)
    source, _ = rewrite(net, x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in source.modules())
    with torch.no_grad():
        assert (source(x) - net(x)).abs().mean() < 0.05 * net(x).abs().mean()


@pytest.mark.parametrize(
    "layers",
    [
        (
            nn.Conv2d(3, 4, 3, padding="same", dilation=2),
            nn.ReLU(),
            nn.Conv2d(4, 4, 4, padding="same"),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 3),
        ),
        (
            nn.Conv2d(3, 4, 3, padding="valid"),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding="valid"),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 3),
        ),
        (
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 4, 2, 2, groups=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(576, 3),
        ),
        (
            nn.Flatten(2),
            nn.Linear(64, 6),
            nn.ReLU(),
            nn.Linear(6, 8),
            nn.BatchNorm1d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24, 3),
        ),
        (
            nn.Flatten(2),
            nn.Linear(64, 16),
            nn.ReLU(),
            nn.Linear(16, 3),
            nn.BatchNorm1d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(9, 3),
        ),
    ],
    ids=["same", "valid", "transposed groups", "norm over tokens", "as many tokens as features"],
)
def test_layers_with_rare_settings(layers: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*copy.deepcopy(layers))
    for layer in net:
        if isinstance(reset := getattr(layer, "reset_parameters", None), Callable):
            reset()  # the layers were drawn when this module was imported
    net, errors = shaken(net), []
    for T, corrections in ((4, []), (4, [Bias(), Weights()]), (256, [])):
        snn, _ = convert(net, X8, MaxThreshold(start=0.5), T, corrections)
        with torch.no_grad():
            errors.append(float((snn(X8) - net(X8)).abs().mean() / net(X8).abs().mean()))
    assert errors[1] < errors[0]
    assert errors[2] < 0.05


def test_computed_weights_and_wrappers_are_taken_off() -> None:
    net = Net(lambda n, x: n.fc(F.relu(n.a(x)).flatten(1)))
    torch.nn.utils.parametrizations.weight_norm(net.a)
    torch.nn.utils.parametrizations.spectral_norm(net.fc)
    snn, _ = convert(nn.DataParallel(net), X8, MaxThreshold(start=0.5), 256, [Weights()])
    with torch.no_grad():
        expected = net.eval()(X8)
        assert float((snn(X8) - expected).abs().mean() / expected.abs().mean()) < 0.02


def test_a_calibrated_and_a_plain_network_have_the_same_keys() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3, bias=False),
    )
    plain, _ = convert(net, X8, MaxThreshold(), 4)
    calibrated, _ = convert(net, X8, MaxThreshold(), 4, [Bias(), Potential()])
    plain.load_state_dict(calibrated.state_dict())
    torch.testing.assert_close(plain(X8), calibrated(X8), rtol=0, atol=0)


@pytest.mark.parametrize("end", [(nn.Linear(64, 3),), (nn.Linear(64, 3), nn.Softmax(1)), (nn.Linear(64, 3), nn.ReLU())])
def test_what_the_records_of_the_output_say_holds(end: tuple[nn.Module, ...]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), *end)
    snn, records = convert(net, X8, MaxThreshold(start=0.5), 4, [Bias()])
    with torch.no_grad():
        error = float((net(X8) - snn(X8)).mean(0).square().mean())
    if isinstance(end[-1], nn.Softmax):  # no layer can be corrected for it
        assert [r.name for r in records] == ["1", "3"]
    else:
        assert error == pytest.approx(records[-1].corrections[0].after, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(("tokens", "features"), [(6, 8), (8, 8)])
def test_a_linear_layer_over_tokens_is_corrected_where_its_channels_are(tokens: int, features: int) -> None:
    net = nn.Sequential(
        nn.Linear(5, features),
        nn.ReLU(),
        nn.Linear(features, features),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(tokens * features, 2),
    )
    x = torch.rand(20, tokens, 5)
    errors = []
    for corrections in ([], [Bias()], [Bias(), Potential(), Weights()]):
        snn, _ = convert(net, x, MaxThreshold(start=0.5), 4, corrections)
        with torch.no_grad():
            errors.append(float((snn(x) - net(x)).square().mean()))
    assert errors[1] < errors[0]
    assert errors[2] < errors[0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net: convert(net, X8, MaxThreshold(), 0), "T=0"),
        (lambda net: convert(net, X8, MaxThreshold(), 2.5), "T=2.5"),
        (lambda net: convert(net, X8[:0], MaxThreshold(), 4), "at least one, and finite"),
        (lambda net: convert(net, X8 * torch.nan, MaxThreshold(), 4), "at least one, and finite"),
        (lambda net: convert(net, X8[0], MaxThreshold(), 4), "does not run on 2 samples"),
        (lambda net: convert(net, X8.double(), MaxThreshold(), 4), "torch.float64"),
        (lambda net: convert(net, X8, MaxThreshold(), 4)[0].at(X8, []), "at least one number of steps"),
    ],
)
def test_wrong_arguments_are_told(call: Callable[[nn.Module], object], words: str) -> None:
    with pytest.raises((UserError, InvalidValue), match=words):
        call(Net(lambda n, x: n.fc(F.relu(n.a(x)).flatten(1))))
