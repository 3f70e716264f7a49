"""Converted networks stored without pickled code: bit-identical answers, and refusal of what could run code."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnexp.conversion.few_spike import FewSpikeConversion
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import Converted, convert
from snnexp.conversion.stored import load_network, save_network
from snnexp.errors import UserError
from snnexp.mitigation.base import Mitigated
from snnexp.mitigation.offset_spike import OffsetSpike
from snnexp.mitigation.signed import Signed
from snnexp.model.resnet import cifar_resnet

T = 16


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Pooling(nn.Module):
    """Max pooling as module and as function, slices, shapes, keywords, a constant tensor, nested and listed modules."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"first-part": nn.Conv2d(3, 6, 3, padding="same"), "act": nn.ReLU()})
        self.pool, self.deep = nn.MaxPool2d(2), nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.ReLU())
        self.register_buffer("scale", torch.tensor([1.5]))
        self.last = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts["act"](self.parts["first-part"](x.to(torch.float32)))
        x = self.deep(self.pool(x) * self.scale)
        x = nn.functional.max_pool2d(x, kernel_size=2)
        return self.last(x[..., :, 0:2].contiguous(memory_format=torch.channels_last).reshape(x.shape[0], -1))


def resnet20(neuron: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    return cifar_resnet((3, 8, 8), 10, neuron, depth=20, width=4, shortcut="B", readout="current").eval()


def converted(kind: str) -> Converted:
    torch.manual_seed(0)
    if kind == "resnet20":
        return convert(resnet20(), images(), MaxThreshold(start=0.5), T)[0]
    if kind == "max pooling":
        return convert(Pooling().eval(), images(), MaxThreshold(maxpool="gate"), T)[0]
    if kind == "few-spike":
        return convert(resnet20(nn.SiLU), images(), FewSpikeConversion(), 8)[0]
    snn = convert(Pooling().eval(), images(), MaxThreshold(maxpool="gate"), T)[0]
    mitigation = Signed(0.25) if kind == "signed" else OffsetSpike(2, rounds=2)
    return mitigation.applied(snn)


@pytest.mark.parametrize("kind", ["resnet20", "max pooling", "few-spike", "signed", "offset spike"])
def test_a_loaded_network_answers_bit_identically(kind: str, tmp_path: Path) -> None:
    snn = converted(kind)
    save_network(snn, tmp_path / "network.pt")
    loaded = load_network(tmp_path / "network.pt")
    x = images(5)
    assert type(loaded) is type(snn)
    assert torch.equal(loaded(x), snn(x))
    assert not torch.equal(snn(x), snn(x.flip(3)))
    assert [n.name for n in loaded.flow.nodes] == [n.name for n in snn.flow.nodes]
    if not isinstance(snn, Mitigated):  # these do not stream
        assert torch.equal(next(loaded.stream(x)), next(snn.stream(x)))
    if kind != "few-spike":
        assert all(torch.equal(a, b) for a, b in zip(loaded.at(x, [1, 3]), snn.at(x, [1, 3]), strict=True))
    save_network(loaded, tmp_path / "again.pt")  # and it can be stored again
    assert torch.equal(load_network(tmp_path / "again.pt")(x), snn(x))


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("stored") / "network.pt"
    save_network(converted("max pooling"), path)
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def _class(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda d: d["modules"][1][1].update({"class": name})


def _node(op: str, target: str, args: Any = (), kwargs: Any = None, name: str = "bad") -> Callable[[Any], None]:
    value = kwargs or {"is": "dict", "items": []}
    return lambda d: d["nodes"].insert(1, (op, name, target, args, value))


X = {"is": "node", "name": "x"}
EVIL = 'a"), __import__("os").system("touch ran"), (x, "b'
HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a class of another package": (_class("subprocess.Popen"), "names subprocess.Popen, which is not allowed"),
    "a class that is no module": (_class("snnexp.errors.UserError"), "must be a Module class of snnexp, torch.nn"),
    "a function in place of a class": (_class("torch.nn.modules.module.register_module_forward_hook"), "not allowed"),
    "a class of torch outside torch.nn": (_class("torch.jit.ScriptModule"), "not allowed"),
    "importing a program": (_class("snnexp.__main__.main"), "not allowed"),
    "a network that is none": (lambda d: d["network"].update({"class": "torch.nn.modules.linear.Linear"}), "Converted"),
    "a function": (_node("call_function", "os.system", ("touch ran",)), "may not name"),
    "a function of torch": (_node("call_function", "torch.load", ("file",)), "may not name"),
    "an operator": (_node("call_function", "operator.methodcaller", ("a",)), "may not name"),
    "a method": (_node("call_method", "__reduce_ex__", (X, 2)), "may not name"),
    "an attribute": (_node("call_function", "getattr", (X, "__class__")), "may not name"),
    "a value in the graph": (_node("get_attr", "forward.__func__.__globals__"), "may not name"),
    "code in the name of a module": (lambda d: d["modules"].append((EVIL, d["modules"][0][1])), "may not name"),
    "code in the name of an input": (_node("placeholder", "y=__import__('os').system('touch ran')"), "may not name"),
    "code in a keyword": (
        _node("call_function", "torch.relu", (X,), {"is": "dict", "items": [("a=print(1), b", 1)]}),
        "may not name",
    ),
    "code in the name of a node": (_node("call_function", "torch.relu", (X,), name="y\nprint(1)"), "may not name"),
    "an attribute of torch's own": (lambda d: d["modules"][1][1]["attributes"].update(_forward_hooks=1), "may not"),
    "another format": (lambda d: d.update(format=2), "it has format 2, and this version reads 1"),
    "no nodes": (lambda d: d.pop("nodes"), "cannot be read as a network that snnexp stored"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_and_run_nothing(
    case: str, described: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change, message = HOSTILE[case]
    changed = copy.deepcopy(described)
    change(changed)
    torch.save(changed, "hostile.pt")
    with pytest.raises(UserError, match=r"hostile\.pt") as refused:
        load_network("hostile.pt")
    assert message in str(refused.value)
    assert not Path("ran").exists()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch ran",)


def test_a_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "network": Evil()}, "hostile.pt")
    with pytest.raises(UserError, match=r"hostile.pt cannot be read as a network that snnexp stored"):
        load_network("hostile.pt")
    assert not Path("ran").exists()


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    snn = converted("max pooling")
    snn.network.last.register_forward_hook(lambda *given: None)
    with pytest.raises(UserError, match="layer last has hooks"):
        save_network(snn, tmp_path / "network.pt")


class Mine(nn.Hardtanh):
    """A module of the user's own."""


def test_modules_of_the_users_own_code_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snn = converted("max pooling")
    snn.network.add_module("mine", Mine())
    with snn.network.graph.inserting_before(snn.flow.output):
        made = snn.network.graph.call_module("mine", (snn.flow.output.args[0],))
        snn.flow.output.args = (made,)
    snn.network.recompile()
    snn._flow = None
    save_network(snn, tmp_path / "network.pt")
    loaded = load_network(tmp_path / "network.pt")
    assert torch.equal(loaded(images()), snn(images()))
    monkeypatch.setattr("snnexp.trust._is_own", lambda package: False)  # as if an installer had put it there
    with pytest.raises(UserError, match=r"names test_faults_stored.Mine, which .* set SNNEXP_TRUSTED=test_faults_stor"):
        load_network(tmp_path / "network.pt")
    monkeypatch.setenv("SNNEXP_TRUSTED", "other,test_faults_stored")
    assert torch.equal(load_network(tmp_path / "network.pt")(images()), snn(images()))
