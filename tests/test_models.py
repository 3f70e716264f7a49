"""Models: parameter counts of the papers, output shapes, and a contract over every YAML with every neuron."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from conftest import ROOT
from snnexp.build import accepted, build
from snnexp.errors import InvalidValue, UserError
from snnexp.testing import ModelContract
from snnexp.timefold import TimeFold

MODELS = sorted(p.stem for p in (ROOT / "conf" / "model").rglob("*.yaml"))
NEURONS = sorted(p.stem for p in (ROOT / "conf" / "neuron").rglob("*.yaml"))
# The smallest of each kind that is still of that kind, and the images it takes.
SMALL = {
    "cifarnet": ({"width": 2}, 8),
    "convnet": ({"width": 4}, 8),
    "mlp": ({"hidden": [16]}, 8),
    "two_layer": ({"hidden": 16}, 8),
    "vgg16": ({"width": 2, "hidden": [16]}, 32),
    "wideresnet": ({"depth": 10, "widen": 1}, 8),
    "resnet18": ({"width": 4}, 8),
    "torchvision": ({"name": "resnet18"}, 32),
    "custom": ({"_target_": "test_models.foreign", "width": 8}, 8),
}
SMALL |= {f"resnet{depth}": ({"width": 4}, 8) for depth in (8, 14, 20, 32, 44, 50, 56, 110)}
DEEP = ("resnet44", "resnet50", "resnet56", "resnet110")  # the same class as resnet32, and slow


def foreign(width: int, classes: int) -> nn.Module:
    """A network of somebody else: it knows neither our neurons nor the input's shape."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.Tanh(), nn.Linear(width, classes))


def factory(name: str) -> Callable[[], nn.Module]:
    cfg = OmegaConf.create(
        {
            "surrogate": OmegaConf.load(ROOT / "conf/surrogate/atan.yaml"),
            "neuron": OmegaConf.load(ROOT / f"conf/neuron/{name}.yaml"),
        }
    )
    return partial(instantiate, cfg.neuron)


def make(
    name: str,
    shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    neuron: Callable[[], nn.Module] = nn.ReLU,
    /,
    **keys: object,
) -> nn.Module:
    node = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/model/{name}.yaml")) | keys
    return build("model", {"model": node}, **accepted(node, {"shape": shape, "classes": classes, "neuron": neuron}))


def small(name: str, neuron: str, T: int = 2) -> tuple[TimeFold, Tensor, Tensor]:
    """A small network of the kind, 32 random images and their labels."""
    keys, side = SMALL[name]
    torch.manual_seed(0)
    net = TimeFold(make(name, (3, side, side), 4, factory(neuron), **keys), T, temporal=False)
    x, y = torch.randn(32, 3, side, side), torch.arange(32) % 4
    return net, x, y


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# The papers' figures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_resnets_have_the_papers_numbers_of_parameters(depth, millions):
    """He et al. 2016, table 6; their shortcuts are option A."""
    net = make(f"resnet{depth}", shortcut="A")
    assert round(size(net) / 1e6, 1 if depth == 110 else 2) == millions
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == depth


@pytest.mark.parametrize(
    ("depth", "talk", "exact"), [(8, 78e3, 78_042), (14, 174e3, 175_258), (20, 271e3, 272_474), (50, 755e3, 758_554)]
)
def test_resnets_with_option_b_have_the_talks_numbers(depth, talk, exact):
    """To one per cent: the talk does not say what it counts. Without BatchNorm: 77, 174, 271 and 755 thousand."""
    net = make(f"resnet{depth}")
    assert size(net) == exact
    assert exact == pytest.approx(talk, rel=0.01)
    counted = sum(size(m) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert counted == pytest.approx(talk, rel=0.009)
    assert depth == 8 or round(counted, -3) == talk


@pytest.mark.parametrize(
    ("depth", "widen", "millions"), [(40, 1, 0.6), (16, 4, 2.7), (40, 4, 8.9), (16, 8, 11.0), (28, 10, 36.5)]
)
def test_wide_resnets_have_the_papers_numbers_of_parameters(depth, widen, millions):
    """Zagoruyko and Komodakis 2016, tables 4 and 5 (WRN-16-4: counted)."""
    with torch.device("meta"):
        net = make("wideresnet", depth=depth, widen=widen)
    assert round(size(net) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "keys", "exact"),
    [
        ("resnet18", {}, 11_173_962),
        ("vgg16", {}, 33_642_442),
        ("vgg16", {"hidden": []}, 14_724_042),
        ("cifarnet", {}, 45_005_450),
        ("mlp", {}, 1_578_506),
        ("convnet", {}, 106_730),
        ("wideresnet", {"depth": 16, "widen": 1}, 175_066),
    ],
)
def test_numbers_of_parameters_of_the_others(name, keys, exact):
    with torch.device("meta"):
        assert size(make(name, **keys)) == exact


def test_torchvisions_resnet50_is_torchvisions():
    from torchvision.models import resnet50

    with torch.device("meta"):
        assert size(make("torchvision", (3, 224, 224), 1000, name="resnet50")) == size(resnet50()) == 25_557_032


# The contract ---------------------------------------------------------------------------------------------------------


def test_none_is_missing():
    assert set(MODELS) >= set(SMALL)
    assert len(SMALL) == 17


class TestEveryModelWithEveryNeuron(ModelContract):
    neurons: ClassVar = {name: factory(name) for name in NEURONS}

    @pytest.fixture(autouse=True, params=[m for m in MODELS if m not in (*DEEP, "custom")])
    def _option(self, request):
        self.keys, side = SMALL.get(request.param, ({}, 32))  # a new option is tried as it is
        self.name, self.shape = request.param, (3, side, side)

    def make(self, shape, classes, neuron):
        return make(self.name, shape, classes, neuron, **self.keys)


class TestCustom(ModelContract):
    """A network of somebody else, which ignores our neurons."""

    shape = (3, 8, 8)
    neurons: ClassVar = {name: factory(name) for name in ("clip", "qcfs", "relu")}

    def make(self, shape, classes, neuron):
        return make("custom", shape, classes, neuron, **SMALL["custom"][0])

    def test_a_spiking_neuron_does_not_make_it_spike(self):
        for name in NEURONS:
            net, x = self.network(factory(name))
            assert (net(x).shape, net.sites()) == ((1, 8, 4), {})


@pytest.mark.parametrize("neuron", NEURONS)
def test_a_compiled_network_has_the_same_gradients_with_every_neuron(neuron):
    """Traced, not compiled to machine code: it is the tracing that once lost QCFS's own gradient."""
    (net, x, y), (again, *_) = small("convnet", neuron), small("convnet", neuron)
    torch.compiler.reset()
    traced = torch.compile(again, backend="eager", dynamic=False)
    for step in (net, traced):
        nn.functional.cross_entropy(step.train()(x).mean(0), y).backward()
    assert torch.equal(net.eval()(x), traced.eval()(x))
    for ours, theirs in zip(again.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", DEEP)
def test_the_deep_ones_give_one_number_a_class(name):
    net, x, _ = small(name, "qcfs")
    assert net.eval()(x[:2]).shape == (1, 2, 4)


@pytest.mark.parametrize("neuron", ["qcfs", "lif"])
@pytest.mark.parametrize(
    "name",
    [
        "cifarnet",
        "convnet",
        "custom",
        "mlp",
        "resnet8",
        "resnet18",
        "two_layer",
        "vgg16",
        "wideresnet",
        pytest.param("torchvision", marks=pytest.mark.slow),
    ],
)
def test_every_kind_overfits_32_images(name, neuron):
    wider = {
        "cifarnet": {"width": 4},
        "vgg16": {"width": 8, "hidden": [64]},
        "resnet18": {"width": 8},
        "two_layer": {"hidden": 64},
        "mlp": {"hidden": [64]},
    }.get(name, {})
    keys, side = SMALL[name]
    torch.manual_seed(0)
    readout = {"readout": "current"} if name == "two_layer" else {}
    net = TimeFold(make(name, (3, side, side), 4, factory(neuron), **keys | wider | readout), 2, temporal=False)
    x, y = torch.randn(32, 3, side, side), torch.arange(32) % 4
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        outputs = net(x).mean(0)
        if (outputs.argmax(1) == y).all():
            return
        nn.functional.cross_entropy(outputs, y).backward()
        optimizer.step()
    raise AssertionError("150 steps were not enough")


def test_weights_survive_a_file(tmp_path):
    net, x, _ = small("resnet8", "qcfs")
    again, *_ = small("resnet8", "qcfs")
    torch.save(net.eval().state_dict(), tmp_path / "weights.pt")
    with torch.no_grad():
        for p in again.eval().parameters():
            p.add_(0.1)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(net(x), again(x))


@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("name", ["cifarnet", "convnet", "vgg16"])
def test_pooling_is_a_choice(name, pooling):
    keys, side = SMALL[name]
    net = make(name, (1, side, side), 10, pooling=pooling, **keys)
    kinds = {type(m) for m in net.modules() if isinstance(m, nn.AvgPool2d | nn.MaxPool2d)}
    assert kinds == {nn.AvgPool2d if pooling == "average" else nn.MaxPool2d}
    assert net(torch.rand(2, 1, side, side)).shape == (2, 10)


def test_max_pooling_is_nowhere_by_default():
    for name in MODELS:
        if name not in ("torchvision", "custom"):
            with torch.device("meta"):
                assert not any(isinstance(m, nn.MaxPool2d) for m in make(name).modules()), name


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_shortcuts(shortcut):
    net = make("resnet14", shortcut=shortcut)
    kernels = [m.kernel_size for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert kernels.count((1, 1)) == (2 if shortcut == "B" else 0)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    if shortcut == "A":  # every other pixel, zeros before and after
        from snnexp.model.resnet import PadShortcut

        x = torch.rand(1, 2, 4, 4)
        y = PadShortcut(2, 2)(x)
        assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
        assert not y[:, [0, 3]].any()


# Time in the batch ----------------------------------------------------------------------------------------------------


def test_batchnorm_over_folded_time_is_batchnorm_over_all_steps_and_samples():
    """Convolution step by step, statistics over steps and samples together, neurons step by step: the same numbers."""
    T, x = 3, torch.rand(5, 3, 2, 6, 6)  # [N, T, C, H, W]
    torch.manual_seed(0)
    conv, norm, neuron = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), factory("lif")()
    net = TimeFold(nn.Sequential(conv, norm, neuron), T, temporal=True)
    out = net(x)
    running = norm.running_mean.clone(), norm.running_var.clone()

    currents = torch.stack([conv(x[:, t]) for t in range(T)])  # [T, N, C, H, W]
    over = (0, 1, 3, 4)
    mean, var = currents.mean(over), currents.var(over, unbiased=False)
    torch.testing.assert_close(running[0], 0.1 * mean)
    torch.testing.assert_close(running[1], 0.9 + 0.1 * currents.var(over))
    normed = (currents - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + norm.eps).sqrt()
    state, steps = None, []
    for current in normed:
        spikes, state = neuron.step(current, state)
        steps.append(spikes)
    assert out.detach().mean() > 0.02
    assert (out != torch.stack(steps)).float().mean() < 1e-3  # a potential may round to the other side of the threshold
    gradient = torch.autograd.grad(out.square().sum(), conv.weight)[0]
    expected = torch.autograd.grad(torch.stack(steps).square().sum(), conv.weight)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


# torchvision and strangers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small"])
def test_torchvision_networks_keep_their_activations_unless_asked(name):
    kept, taken = (make("torchvision", (3, 32, 32), 10, factory(n), name=name) for n in ("relu", "qcfs"))
    kinds = [{type(m).__name__ for m in net.modules()} for net in (kept, taken)]
    own = {"SiLU", "ReLU6", "Hardswish", "ReLU"}
    assert kinds[0] & own
    assert not kinds[1] & own
    assert "QCFS" in kinds[1]
    assert taken(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_torchvision_weights_from_a_file_get_a_new_last_layer(tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    source = resnet18(num_classes=7)
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.pth")
    same = make("torchvision", (3, 32, 32), 7, name="resnet18", weights=str(tmp_path / "w.pth"))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(same.eval()(x), source.eval()(x))
    other = make("torchvision", (3, 32, 32), 4, name="resnet18", weights=str(tmp_path / "w.pth"))
    assert other(x).shape == (2, 4)
    assert torch.equal(other.conv1.weight, source.conv1.weight)


def test_torchvision_refuses(monkeypatch):
    with pytest.raises(UserError, match=r"model.name=resnet51 .* resnet50"):
        make("torchvision", name="resnet51")
    with pytest.raises(UserError, match=r"model.name=resnet18 .* three channels"):
        make("torchvision", (1, 28, 28), name="resnet18")
    with pytest.raises(UserError, match="no such file"):
        make("torchvision", weights="/nowhere/w.pth")
    import torchvision

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    with pytest.raises(UserError, match="cannot fetch the weights of resnet50"):
        make("torchvision", weights="default")


def test_a_strangers_callable_gets_its_own_keywords_only():
    def builder(width: int, classes: int = 3) -> None: ...

    target = f"{__name__}.foreign"
    offered = {"shape": (1,), "classes": 10, "neuron": nn.ReLU}
    assert accepted({"_target_": target, "width": 4}, offered) == {"classes": 10}
    assert accepted({"_target_": target, "width": 4, "classes": 2}, offered) == {}
    assert accepted({"_target_": "torchvision.models.resnet18"}, offered) == {}
    assert accepted({"_target_": "torch.nn.Identity"}, offered) == {}


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("resnet20", {"depth": 21}, r"model.depth=21 .* 6n \+ 2"),
        ("wideresnet", {"depth": 17}, r"model.depth=17 .* 6n \+ 4"),
        ("wideresnet", {"depth": 10**20}, r"model.depth=1000.* up to 10,000"),
        ("wideresnet", {"widen": 0}, "model.widen=0"),
        ("resnet20", {"shortcut": "C"}, "model.shortcut=C .* A, B"),
        ("vgg16", {"pooling": "min"}, "model.pooling=min .* average, max"),
        ("mlp", {"hidden": [0]}, "model.hidden=0"),
        ("wideresnet", {"dropout": 1.0}, "model.dropout=1.0"),
        ("convnet", {"readout": "vote"}, "model.readout=vote"),
        ("custom", {"_target_": "no_such_package.build"}, "no_such_package"),
    ],
)
def test_refused(name, keys, message):
    with pytest.raises(UserError, match=message):
        make(name, **keys)


def test_images_that_are_too_small_are_refused():
    with pytest.raises((UserError, InvalidValue), match="32 x 32"):
        make("vgg16", (3, 28, 28))
