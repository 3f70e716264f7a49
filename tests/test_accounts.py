"""Multiply-accumulates and synaptic operations of layers in every form, against independent counts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from snnexp.calibration.bias import Bias
from snnexp.calibration.weights import Weights
from snnexp.conversion.cost import multiply_accumulates
from snnexp.conversion.few_spike import FewSpikeConversion
from snnexp.conversion.flow import Flow
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import convert, converted
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.vocabulary import NUMBERS
from snnexp.conversion.walk import walk

X8 = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class StaticPadding(nn.Conv2d):
    """A convolution that pads its input itself, as EfficientNets do."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """A convolution whose weights are computed when it is called."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / std, self.bias)


class Masked(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", (torch.rand(outputs, inputs) > 0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class ByHand(nn.Module):
    """All layers are functions of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(4, 3, 3, 3) / 5), nn.Parameter(torch.randn(4, 2, 3, 3) / 4)
        self.up, self.w3 = nn.Parameter(torch.randn(4, 2, 2, 2) / 3), nn.Parameter(torch.randn(2 * 64, 6) / 11)
        self.b3, self.w4 = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(3, 6) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(input=x, weight=self.w1, padding=1))
        x = F.relu(torch.conv2d(x, self.w2, None, stride=2, padding=1, groups=2))
        x = F.relu(F.conv_transpose2d(x, self.up, stride=2))
        x = F.relu(x.flatten(1) @ self.w3 + self.b3)
        return torch.addmm(self.b3[:3], x, self.w4.t())


class Attending(nn.Module):
    """Attention in the part that is computed once."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(192, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)[:, :, :64].reshape(len_of(x), 24, 8)
        x, _ = self.attention(x, x, x)
        return self.fc(F.relu(x).flatten(1))


def len_of(x: Tensor) -> int:
    return x.shape[0]


class Products(nn.Module):
    """A product of two signals."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(8, 8), nn.Linear(192, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        return self.fc(torch.matmul(x, x.transpose(2, 3)).flatten(1))


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "static padding": lambda: sequence(StaticPadding(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 4, 1)),
    "standardised": lambda: sequence(Standardised(3, 4, 3), nn.ReLU(), Standardised(4, 4, 3, groups=2), nn.ReLU()),
    "masked": lambda: nn.Sequential(nn.Flatten(), Masked(192, 9), nn.ReLU(), Masked(9, 4), nn.ReLU(), nn.Linear(4, 3)),
    "by hand": ByHand,
    "attending": Attending,
    "products": Products,
    "transposed": lambda: sequence(nn.ConvTranspose2d(3, 4, 3, 2), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, groups=2)),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=5),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.25),
    "densenet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5),
    "efficientnet_b0": lambda: torchvision.models.efficientnet_b0(num_classes=5),
    "googlenet": lambda: torchvision.models.googlenet(num_classes=5, aux_logits=False, init_weights=False),
}


def flops(net: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NETWORKS)
def test_multiply_accumulates_are_those_of_the_flop_counter(name: str) -> None:
    """Of torch, on the caller's own network: nothing is lost on the way into the graph."""
    net = NETWORKS[name]().eval()
    x = X8[:2] if name in list(NETWORKS)[:7] else torch.rand(2, 3, 32, 32)
    net(x)
    source, _ = rewrite(net, x, vocabulary=NUMBERS)
    found = multiply_accumulates(Flow(source), x[:1])
    torch.backends.mha.set_fastpath_enabled(False)  # one operation that the counter does not know
    try:
        assert 2 * sum(found.values()) == flops(net, x[:1]) > 0
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_multiply_accumulates_are_the_published_ones() -> None:
    """Of torchvision, which counted them with another library, in billions."""
    weights = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
    x = torch.rand(2, 3, 224, 224)
    source, _ = rewrite(torchvision.models.mobilenet_v2().eval(), x)
    total = sum(multiply_accumulates(Flow(source), x[:1]).values())
    assert round(total / 1e9, 3) == pytest.approx(weights.meta["_ops"], abs=0.0011)


def test_functional_layers_cost_and_are_corrected_as_modules_are() -> None:
    """The same network twice, once as functions: the same account, the same answers, the same corrections."""
    padded = nn.Sequential(
        *(StaticPadding(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), StaticPadding(4, 4, 3, 2), nn.ReLU()),
        *(nn.Flatten(), Masked(64, 3)),
    ).eval()
    padded[1].running_var.uniform_(0.5, 2)
    usual = nn.Sequential(
        *(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)),
    ).eval()
    for mine, given in zip((1, 2, 5, 8), (0, 1, 3, 6), strict=True):
        usual[mine].load_state_dict({k: v for k, v in padded[given].state_dict().items() if k != "mask"})
    usual[8].weight.data *= padded[6].mask  # type: ignore[operator]
    for method, T in ((MaxThreshold(start=0.5), 8), (FewSpikeConversion(), 6)):
        accounts, answers = [], []
        for net in (padded, usual):
            source, network = rewrite(net, X8, vocabulary=method.neuron.vocabulary)
            records = walk(source, network, X8, T, method, [Bias(), Weights()])
            snn = converted(network, T)
            accounts.append(snn.examine(source, X8, T)[1])
            answers.append((snn(X8), [(kept.before, kept.after) for record in records for kept in record.corrections]))
        assert accounts[0].ann_macs == accounts[1].ann_macs == 64 * 4 * 27 + 16 * 4 * 36 + 64 * 3
        assert accounts[0].synaptic_operations == pytest.approx(accounts[1].synaptic_operations)
        assert accounts[0].energy_nj == pytest.approx(accounts[1].energy_nj)
        torch.testing.assert_close(answers[0][0], answers[1][0])
        for pair in zip(answers[0][1], answers[1][1], strict=True):
            assert pair[0] == pytest.approx(pair[1], rel=1e-3, abs=1e-9)


def test_a_matrix_product_of_spikes_costs_operations() -> None:
    net = ByHand().eval()
    source, network = rewrite(net, X8)
    walk(source, network, X8, 8, MaxThreshold())
    snn = converted(network, 8)
    _, account = snn.examine(source, X8, 8)
    assert account.ann_macs == 64 * 4 * 27 + 16 * 4 * 18 + 16 * 4 * 8 + 128 * 6 + 6 * 3
    assert account.macs == 64 * 4 * 27
    assert 0 < account.synaptic_operations < 8 * (account.ann_macs - account.macs)


def test_products_of_two_signals_are_multiply_accumulates() -> None:
    net = Products().eval()
    source, network = rewrite(net, X8, vocabulary=NUMBERS)
    walk(source, network, X8, 8, FewSpikeConversion())
    _, account = converted(network, 8).examine(source, X8, 8)
    assert account.ann_macs == 24 * 64 + 24 * 64 + 192 * 3
    assert account.macs == pytest.approx(account.ann_macs, rel=0.01)  # numbers, few of which are 0


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(8, 4, batch_first=True), nn.Linear(96, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x.flatten(1, 2))
        return self.fc(F.relu(y).flatten(1))


def test_a_layer_that_cannot_be_counted_is_named(caplog: pytest.LogCaptureFixture) -> None:
    net = Recurrent().eval()
    source, network = rewrite(net, X8)
    walk(source, network, X8, 8, MaxThreshold())
    with caplog.at_level(logging.WARNING):
        _, account = converted(network, 8).examine(source, X8, 8)
    assert re.search(r"layer lstm \(LSTM\) does work that cannot be counted", caplog.text)
    assert account.ann_macs != account.ann_macs  # NaN, which the task leaves out
    assert account.spikes > 0
    assert account.synaptic_operations > 0


def test_the_fast_path_is_that_of_modules() -> None:
    """A site writes over the output of a functional convolution as well."""
    snn, _ = convert(ByHand().eval(), X8, MaxThreshold(), 8)
    assert [str(node.target) for node in snn.flow.sites if node in snn.flow.spent] == ["relu_2", "relu_3", "relu_4"]
