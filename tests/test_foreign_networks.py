"""Networks that nobody here wrote: they are converted right, or refused in words that name the layer and a way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrize, prune

from snnexp.conversion.few_spike import FewSpikeConversion
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import Converted, convert
from snnexp.errors import UserError

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


def faithful(net: nn.Module, x: Tensor = X8, kinds: tuple[str, ...] = ("rate", "few_spike")) -> Converted:
    """Convert by each code and compare; return the last network."""
    for kind in kinds:
        method, T = METHODS[kind]
        snn, _ = convert(net.eval(), x, method, T)
        assert error(snn, net, x) < 0.02, kind
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
