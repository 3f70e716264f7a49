"""Networks that nobody here wrote: they are converted right, or refused in words that name the layer and a way out."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrize, prune
from torchvision.models import VisionTransformer

from snnexp.conversion.few_spike import FewSpikeConversion
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import Converted, convert
from snnexp.conversion.qcfs import QCFSConversion
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.stored import load_network, save_network
from snnexp.errors import UserError
from snnexp.neuron.qcfs import QCFS

X8 = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
METHODS = {"rate": (MaxThreshold(start=0.5), 256), "few_spike": (FewSpikeConversion(), 10)}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Plain(nn.Module):
    """A convolution with a norm, another one, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.b, self.act2, self.fc = nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Linear(64, 3)

    def logits(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.a(x)))
        y: Tensor = self.fc(self.act2(self.b(x)).flatten(1))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


class Calls(Plain):
    """A network whose forward is `f`."""

    def __init__(self, f: Callable[[Calls, Tensor], object]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> object:  # type: ignore[override]
        return self.f(self, x)


def error(snn: Converted, net: nn.Module, x: Tensor = X8) -> float:
    """The relative error of the outputs."""
    with torch.no_grad():
        expected = net(x)
        return float((snn(x) - expected).norm() / expected.norm())


def faithful(
    net: nn.Module, x: Tensor = X8, kinds: tuple[str, ...] = ("rate", "few_spike"), within: float = 0.02
) -> Converted:
    """Convert by each code and compare; return the last network."""
    for kind in kinds:
        method, T = METHODS[kind]
        snn, _ = convert(net.eval(), x, method, T)
        assert error(snn, net, x) < within, kind
    return snn


# Hooks ----------------------------------------------------------------------------------------------------------------


def three(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output * 3


def in_place(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    output.mul_(3)


def twice(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] * 2,)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", ["a", "norm", "act", "b", "fc"])
@pytest.mark.parametrize("hook", [three, in_place, twice])
def test_hooks_that_change_values_are_refused_by_layer(hook: Callable[..., object], name: str, kind: str) -> None:
    net = Plain().eval()
    layer = net.get_submodule(name)
    register = layer.register_forward_pre_hook if hook is twice else layer.register_forward_hook
    handle = register(hook)  # type: ignore[arg-type]
    words = rf"a forward hook of layer {name} \({type(layer).__name__}\) changes values.*handle.remove\(\)"
    with pytest.raises(UserError, match=words):
        convert(net, X8, METHODS[kind][0], 4)
    handle.remove()
    faithful(net, kinds=(kind,))


@pytest.mark.parametrize("inside", [nn.Identity(), nn.Dropout(), nn.Sequential(nn.Identity())])
def test_hooks_of_what_is_removed_and_of_containers(inside: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), inside, nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    handle = inside.register_forward_hook(three)
    with pytest.raises(UserError, match="a forward hook of layer 1"):
        convert(net, X8, MaxThreshold(), 4)
    handle.remove()
    handle = net.register_forward_hook(three)
    with pytest.raises(UserError, match="a forward hook of the network itself"):
        convert(nn.DataParallel(net), X8, MaxThreshold(), 4)
    handle.remove()
    wrapper = nn.DataParallel(net)
    wrapper.register_forward_hook(three)
    with pytest.raises(UserError, match="a forward hook of the network itself"):
        convert(wrapper, X8, MaxThreshold(), 4)


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_hooks_of_all_modules(register: Callable[..., Any]) -> None:
    net = Plain().eval()

    def hook(module: nn.Module, *values: Any) -> object:
        if not isinstance(module, nn.BatchNorm2d):
            return None
        return values[-1] * 3 if register is register_module_forward_hook else (values[0][0] * 3,)

    handle = register(hook)
    try:
        with pytest.raises(UserError, match=r"a hook of all modules .* changes values"):
            convert(net, X8, MaxThreshold(), 4)
    finally:
        handle.remove()
    faithful(net)


def test_hooks_that_look_are_fine() -> None:
    net, seen = Plain().eval(), list[float]()
    for module in net.modules():  # each asks for a number, which no trace could follow
        module.register_forward_hook(lambda m, i, o: seen.append(float(o.max())))
        module.register_forward_pre_hook(lambda m, i: seen.append(float(i[0].max())))
    everywhere = register_module_forward_hook(lambda m, i, o: seen.append(float(o.max())))
    try:
        snn = faithful(net)
    finally:
        everywhere.remove()
    assert seen
    assert not any(module._forward_hooks for module in snn.modules())
    assert all(module._forward_hooks for module in net.modules())


def test_a_forward_that_was_replaced_for_one_layer_is_followed() -> None:
    net = Plain().eval()
    original = net.b.forward
    net.b.forward = lambda x: 2 * original(x)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="layer b cannot be traced"):  # the copy would call the caller's layer
        convert(net, X8, MaxThreshold(), 4)

    class Doubling(nn.ReLU):
        def double(self, x: Tensor) -> Tensor:
            return 2 * F.relu(x)

    net = Plain().eval()
    net.act2 = Doubling()
    net.act2.forward = net.act2.double  # type: ignore[method-assign]
    faithful(net)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_parametrizations_are_kept_of_weights_and_of_statistics() -> None:
    net = Plain()
    parametrize.register_parametrization(net.a, "weight", Twice())
    parametrize.register_parametrization(net.norm, "running_var", Twice())
    before = net.eval()(X8)
    faithful(net)
    assert torch.equal(net(X8), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.random_unstructured(prune.ln_structured(layer, "weight", 0.3, 2, 0), "weight", 0.3),
        lambda layer: torch.nn.utils.weight_norm(layer),
        lambda layer: torch.nn.utils.spectral_norm(layer),
        lambda layer: torch.nn.utils.parametrizations.spectral_norm(layer),
    ],
    ids=["pruned", "pruned twice", "weight norm", "spectral norm", "parametrized"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_computed_weights_before_a_norm(change: Callable[[nn.Module], object]) -> None:
    net = Plain()
    change(net.a)
    change(net.fc)
    before = net.eval()(X8)
    snn = faithful(net)
    assert set(dict(snn.network.a.named_parameters())) == {"weight", "bias"}  # type: ignore[union-attr, operator]
    assert not hasattr(snn.network, "norm")  # folded
    assert torch.equal(net(X8), before)


# Outputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", METHODS)
def test_outputs_without_a_batch_axis_are_those_of_the_network(kind: str) -> None:
    def f(net: Calls, x: Tensor) -> object:
        y = net.logits(x)
        sizes = {"n": x.shape[0], "numel": y.numel(), "shape": y.shape, "width": x.shape[3], "dtype": y.dtype}
        return {"logits": y, "bias": net.fc.bias, "scaled": [net.fc.bias * y.shape[1], 3, None], **sizes}

    net, x = Calls(f).eval(), torch.rand(300, 3, 8, 8)
    snn, _ = convert(net, X8, METHODS[kind][0], 8)
    expected, found = net(x), snn(x)
    assert found["logits"].shape == (300, 3)
    assert torch.equal(found["bias"], net.fc.bias)
    assert torch.equal(found["scaled"][0], 3 * net.fc.bias)
    assert found["scaled"][1:] == [3, None]
    for name in ("n", "numel", "shape", "width", "dtype"):
        assert found[name] == expected[name], name


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (lambda net, x: x.mean(0), "layer mean in the network's forward joins or mixes the samples"),
        (lambda net, x: x.mean(), "layer mean in the network's forward joins or mixes the samples"),
        (lambda net, x: x.shape[0] + 1, "a value that its batch size changes .add in .* return x.shape"),
    ],
    ids=["mean", "one number", "count"],
)
def test_outputs_that_parts_of_a_batch_cannot_give(more: Callable[[Calls, Tensor], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        convert(Calls(lambda net, x: (net.logits(x), more(net, x))), X8, MaxThreshold(), 4)


# Sizes ----------------------------------------------------------------------------------------------------------------


def padded_to_fours(net: Calls, x: Tensor) -> Tensor:
    y = F.relu(net.a(x))
    h, _ = y.shape[-2:]
    return net.head(F.pad(y, (0, math.ceil(h / 4) * 4 - h)))  # type: ignore[operator]


def halved(net: Calls, x: Tensor) -> Tensor:
    y = F.relu(net.a(x))
    kept = int(y.size(1) * 0.5)
    return net.head(torch.cat([2 * y[:, :kept], y[:, kept:]], 1))  # type: ignore[operator]


def summed(net: Calls, x: Tensor) -> Tensor:
    y = F.relu(net.a(x))
    return net.head(sum(y[:, k : k + 1] * (k + 1) for k in range(y.shape[1])))  # type: ignore[operator]


def checked(net: Calls, x: Tensor) -> Tensor:
    y = F.relu(net.a(x))
    torch._assert(x.shape[2] == 8, "eight rows")
    assert y.shape == F.relu(net.a(x)).shape
    return net.head(y if x.shape[3] > 4 else 2 * y)  # type: ignore[operator]


def of_rank(net: Calls, x: Tensor) -> Tensor:
    """What depends on the number of axes alone holds for images of all sizes."""
    torch._assert(x.ndim == 4, "four axes")
    y = F.relu(net.a(x if x.dim() == 4 else x.unsqueeze(0)))
    return net.head(y.view(*y.shape[:-1], -1) if len(y.shape) == 4 else y)  # type: ignore[operator]


@pytest.mark.parametrize("f", [padded_to_fours, halved, summed, checked, of_rank])
def test_control_flow_may_depend_on_sizes(f: Callable[[Calls, Tensor], Tensor]) -> None:
    net = Calls(f)
    net.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(3))
    net(X8)
    snn, wide = faithful(net), torch.rand(4, 3, 8, 12)
    torch.testing.assert_close(snn(X8[:1]), snn(X8)[:1])
    if f in (of_rank, padded_to_fours):  # these sizes stay operations of the graph
        assert error(snn, net, wide) < 0.05
    else:
        words = r"\[N, 3, 8, 12\] do not fit: sizes decide .* converted for \[N, 3, 8, 8\]"
        with pytest.raises(UserError, match=words):
            snn(wide)


@pytest.mark.parametrize("f", [padded_to_fours, halved])
def test_a_network_with_sizes_is_stored_and_loaded(f: Callable[[Calls, Tensor], Tensor], tmp_path: Path) -> None:
    net = Calls(f)
    net.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    net(X8)
    snn = faithful(net)
    save_network(snn, tmp_path / "network.pt")
    torch.save(snn, tmp_path / "model.pt")
    for again in (load_network(tmp_path / "network.pt"), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(again(X8), snn(X8))
        if f is halved:
            with pytest.raises(UserError, match="do not fit"):
                again(torch.rand(4, 3, 8, 12))


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda net, x: net.logits(x) if x.shape[0] > 3 else 2 * net.logits(x), "gt, which depends on the batch size"),
        (lambda net, x: net.logits(x) if x.mean() > 0 else x, "value of gt, which depends on the data"),
        (lambda net, x: net.fc(F.adaptive_avg_pool2d(net.act(net.b(net.a(x))), 4).squeeze().flatten(-3)), "squeeze"),
        (lambda net, x: F.adaptive_avg_pool2d(net.act(net.a(x)), 1).squeeze(), r"squeeze in .* batch of one.*flatten"),
    ],
    ids=["batch size", "data", "squeezed", "squeezed at the end"],
)
def test_what_a_batch_decides_is_refused(f: Callable[[Calls, Tensor], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        convert(Calls(f), X8, MaxThreshold(), 4)


# Quantised activations that are written out ---------------------------------------------------------------------------


class Floor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.floor()


class Published(nn.Module):
    """The activation as the authors of QCFS write it, with a learnt `thresh`."""

    def __init__(self, L: int, thresh: float) -> None:
        super().__init__()
        self.L, self.thresh = L, nn.Parameter(torch.tensor([thresh]))

    def forward(self, x: Tensor) -> Tensor:
        x = x / self.thresh
        x = torch.clamp(x, 0, 1)
        x = Floor.apply(x * self.L + 0.5) / self.L
        return x * self.thresh


class OtherOrder(Published):
    def forward(self, x: Tensor) -> Tensor:
        clipped = torch.minimum(F.relu(x) / self.thresh, torch.tensor(1.0))
        return 3 * (self.thresh / self.L * torch.floor(clipped * self.L + 0.5))


class Unshifted(Published):
    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(torch.clamp(x / self.thresh, 0, 1) * self.L) / self.L * self.thresh


def quantised(first: nn.Module, second: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), first, nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1), second),
        *(nn.Flatten(), nn.Linear(72, 4)),
    ).eval()


@pytest.mark.parametrize(("L", "thresh"), [(4, 0.3), (8, 0.6), (6, 0.45), (1, 0.3), (32, 1.1)])
def test_published_qcfs_networks_are_ours(L: int, thresh: float) -> None:
    theirs, mine = quantised(Published(L, thresh), Published(L, 0.2)), quantised(QCFS(L, thresh), QCFS(L, 0.2))
    snn, _ = convert(theirs, X8, QCFSConversion(), L)
    own, _ = convert(mine, X8, QCFSConversion(), L)
    assert [str(site.target) for site in snn.flow.sites] == ["2.qcfs", "5.qcfs"]
    assert float(snn.network.get_submodule("2.qcfs").theta.mean()) == pytest.approx(thresh)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(snn(X8), own(X8))


def test_the_order_of_operations_and_a_factor_behind_do_not_matter() -> None:
    """The network's values stay; a scaling that follows is part of the activation."""
    theirs = quantised(OtherOrder(6, 0.5), Published(4, 0.4))
    source, _ = rewrite(theirs, X8)
    first, second = source.get_submodule("2.qcfs"), source.get_submodule("5.qcfs")
    assert isinstance(first, QCFS)
    assert isinstance(second, QCFS)
    assert (first.levels, second.levels) == (6, 4)
    assert float(second.threshold) == pytest.approx(0.4)
    with torch.no_grad():
        assert float((source(X8) - theirs(X8)).norm() / theirs(X8).norm()) < 0.02  # folding moves a few steps


def test_other_rounding_is_refused_by_layer() -> None:
    with pytest.raises(UserError, match=r"layer floor in 2 \(floor\) cannot be converted"):
        convert(quantised(Unshifted(4, 0.3), Published(4, 0.3)), X8, QCFSConversion(), 4)
    rounding = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))

    class Rounded(nn.Module):
        """An image in 256 levels is computed once, as before."""

        def __init__(self) -> None:
            super().__init__()
            self.net = rounding

        def forward(self, x: Tensor) -> Tensor:
            return self.net(torch.round(x * 255) / 255)  # type: ignore[no-any-return]

    snn, _ = convert(Rounded(), X8, MaxThreshold(), 4)
    assert [str(site.target) for site in snn.flow.sites] == ["net.1"]


# Refusals -------------------------------------------------------------------------------------------------------------


def around(*layers: nn.Module) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Flatten(), nn.LazyLinear(3)).eval()
    net(X8)
    return net


class Functions(nn.Module):
    """Calls f in its forward."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.f, self.fc = nn.Conv2d(3, 4, 3), f, nn.LazyLinear(3)
        self(X8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.f(self.a(x)).flatten(1))  # type: ignore[no-any-return]


FEW = r"Ways out: conversion=few_spike, which can convert this network, or .*neuron=relu, clip or qcfs"
RELUS = r"Ways out: compute it as relu\(x\) - w \* relu\(-x\)"
NORMS = "Ways out: train the network with BatchNorm in its place"
POOLS = "Ways out: MaxPool2d in its place"
W = torch.full((4, 1, 1), 0.25)


@pytest.mark.parametrize(
    ("kind", "net", "layer", "way"),
    [
        ("rate", lambda: around(nn.SiLU()), r"no ReLU, clipped or QCFS .* layer 1 \(SiLU\)", FEW),
        ("rate", lambda: Functions(F.gelu), r"nothing to convert.* layer gelu in the network's forward \(gelu\)", FEW),
        ("rate", lambda: around(nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Hardswish()), r"layer 3 \(Hardswish\)", FEW),
        ("rate", lambda: around(nn.PReLU()), r"layer 1 \(PReLU\)", RELUS),
        ("few_spike", lambda: around(nn.PReLU()), r"no elementwise activation that .* layer 1 \(PReLU\)", RELUS),
        ("few_spike", lambda: around(nn.ReLU(), nn.PReLU()), r"layer 2 \(PReLU\) cannot be converted", RELUS),
        ("rate", lambda: around(nn.ReLU(), nn.FractionalMaxPool2d(2, 3)), r"layer 2 \(FractionalMaxPool2d\)", POOLS),
        ("few_spike", lambda: around(nn.ReLU(), nn.FractionalMaxPool2d(2, 3)), r"\(FractionalMaxPool2d\)", POOLS),
        ("few_spike", lambda: around(nn.ReLU(), nn.FractionalMaxPool2d(2, 4)), "layer 2 draws at random", "MaxPool2d"),
        ("rate", lambda: around(nn.ReLU(), nn.GroupNorm(2, 4), nn.ReLU()), r"layer 2 \(GroupNorm\)", NORMS),
        ("few_spike", lambda: around(nn.ReLU(), nn.GroupNorm(2, 4), nn.ReLU()), r"layer 2 \(GroupNorm\)", NORMS),
        ("few_spike", lambda: around(nn.ReLU(), nn.Softmax(1), nn.ReLU()), r"layer 2 \(Softmax\)", "without attention"),
        ("rate", lambda: around(nn.GELU(), nn.LayerNorm(6), nn.GELU()), r"layer 1 \(GELU\)", "either .layer 2 .LayerN"),
        ("rate", lambda: around(), "nothing to convert: the network is linear", "use it as it is"),
        ("rate", lambda: around(torch.jit.script(nn.ReLU())), "layer 1 is a TorchScript module", "made from"),
        ("few_spike", lambda: torch.jit.script(around(nn.ReLU())), "the network itself is a TorchScript", "state_dict"),
    ],
)
def test_refusals_name_the_layer_and_a_way_out(kind: str, net: Callable[[], nn.Module], layer: str, way: str) -> None:
    made = net()
    with pytest.raises(UserError) as refused:
        convert(made, X8, METHODS[kind][0], 8)
    assert re.search(layer, str(refused.value)), refused.value
    assert re.search(way, str(refused.value)), refused.value


@pytest.mark.parametrize(
    ("net", "kinds"),
    [
        (lambda: around(nn.SiLU()), ("few_spike",)),
        (lambda: Functions(lambda x: F.relu(x) - W * F.relu(-x)), ("rate", "few_spike")),
        (lambda: Functions(lambda x: (parts := x.chunk(2, 1))[0] * torch.sigmoid(parts[1])), ("few_spike",)),
        (lambda: around(nn.ReLU(), nn.MaxPool2d(2)), ("few_spike",)),
    ],
    ids=["few_spike", "prelu", "glu", "pooling"],
)
def test_the_ways_out_work(net: Callable[[], nn.Module], kinds: tuple[str, ...]) -> None:
    made = net().eval()
    made(X8)
    faithful(made, kinds=kinds, within=0.1)  # tables of smooth functions


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny", "vit_b_32"])
def test_families_without_relu_are_told_about_few_spike(name: str) -> None:
    small = {"vit_b_32": lambda: VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=5)}
    net = small.get(name, lambda: getattr(torchvision.models, name)(num_classes=5))().eval()
    words = {
        "efficientnet_b0": r"layer features.0.2 \(SiLU\).*conversion=few_spike, which can convert this network",
        "convnext_tiny": r"layer features.1.0.block.4 \(GELU\).*conversion=few_spike cannot .*block.2 \(LayerNorm\)",
        "vit_b_32": r"encoder_layer_0.mlp.1 \(GELU\).*conversion=few_spike cannot .*encoder_layer_1.ln_1 \(LayerNorm\)",
    }
    with pytest.raises(UserError, match=words[name]):
        rewrite(net, torch.rand(2, 3, 32, 32))


FORK = """
import os, torch
from torch import nn
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import convert

def learns():
    torch.ones(1, requires_grad=True).sum().backward()

convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(4, 3), MaxThreshold(), 2)
learns()
child = os.fork()
if not child:
    learns()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_has_converted_can_fork_one_that_trains() -> None:
    """As a sweep does after a conversion in Python. torch's FakeTensorMode starts threads of autograd otherwise."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True)
    assert done.stdout == "7\n", done.stderr
