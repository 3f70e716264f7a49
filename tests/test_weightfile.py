"""Checkpoints as people have them: the weights are found under any key and prefix, and other files are told apart."""

from __future__ import annotations

import argparse
import collections
import gzip
import io
import itertools
import os
import pathlib
import pickle
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from snnexp.checkpoint import load_into, read_weights
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import convert
from snnexp.conversion.stored import save_network
from snnexp.errors import UserError
from snnexp.model.torchvision import network as published
from snnexp.timefold import Normalize, TimeFold


class Parts(nn.Module):
    """A network whose attributes are called as the parts of names that wrappers add."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.front = Normalize((0.5,), (0.5,))
        self.model = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.network((x * self.front.std + self.front.mean).flatten(1)))  # type: ignore[no-any-return]


def folded(net: nn.Module) -> TimeFold:
    return TimeFold(net, 1, temporal=False, front=Normalize((0.25,), (0.25,)))


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))


SOURCE = {k: v + 0.25 if v.is_floating_point() else v for k, v in plain().state_dict().items()}


def loaded(content: object, path: Path, make: Callable[[], nn.Module] = plain) -> dict[str, Tensor]:
    torch.save(content, path)
    net = folded(make())
    load_into(net, path)
    return dict(net.network.state_dict())


def equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k].to(found[k].dtype)) for k in wanted)


def prefixed(prefix: str, weights: Mapping[str, Tensor] = SOURCE) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


# Names ----------------------------------------------------------------------------------------------------------------

KEYS = ("net", "network", "model_state_dict", "state_dict_ema", "ema", "params", "weights")


@pytest.mark.parametrize("key", KEYS)
def test_weights_are_found_under_any_key(key: str, tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": SOURCE["0.weight"] * 9}}, "param_groups": [{"lr": 0.1}]}
    content = {"optimizer": optimizer, "best": torch.tensor(0.9), "inner": [{key: SOURCE}, 3]}
    for each in ({key: SOURCE, "epoch": 3}, content):
        assert equal(loaded(each, tmp_path / "w.pt"), SOURCE)


def test_averaged_weights_are_taken_only_if_there_are_no_others(tmp_path: Path) -> None:
    averaged = {k: v * 0 for k, v in SOURCE.items()}
    for content in ({"state_dict_ema": averaged, "state_dict": SOURCE}, {"model": SOURCE, "ema": {"module": averaged}}):
        assert equal(loaded(content, tmp_path / "w.pt"), SOURCE)


PREFIXES = ("module.", "_orig_mod.", "model.", "network.")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_prefixes_in_any_order_and_depth(count: int, tmp_path: Path) -> None:
    for prefixes in itertools.permutations(PREFIXES, count):
        assert equal(loaded(prefixed("".join(prefixes)), tmp_path / "w.pt"), SOURCE), prefixes
        own = Parts().state_dict()
        assert equal(loaded(prefixed("".join(prefixes), own), tmp_path / "w.pt", Parts), own), prefixes


def test_wrappers_inside_names_and_what_they_and_profilers_leave(tmp_path: Path) -> None:
    net = torchvision.models.mobilenet_v3_small(num_classes=5)
    own = {k: v.clone() for k, v in net.state_dict().items()}
    net.features = nn.DataParallel(net.features)
    averaged = torch.optim.swa_utils.AveragedModel(torch.compile(net))
    names = dict(averaged.state_dict()) | {"total_ops": torch.zeros(1), "module.features.total_params": torch.zeros(1)}
    assert {"n_averaged", "module._orig_mod.features.module.0.0.weight"} <= set(names)
    torch.save({"model_ema": names}, tmp_path / "w.pt")
    made = published((3, 32, 32), 5, nn.ReLU, name="mobilenet_v3_small", weights=str(tmp_path / "w.pt"))
    assert equal(made.state_dict(), own)


def test_attributes_that_are_called_like_our_own_prefixes(tmp_path: Path) -> None:
    """Of `network`, `front` and `model`; and our own file of the same network."""
    net = folded(Parts())
    with torch.no_grad():
        net.front.mean.fill_(0.125)
        net.network.front.mean.fill_(0.75)
    for content, mean in ((net.network.state_dict(), 0.25), ({"model": net.state_dict()}, 0.125)):
        torch.save(content, tmp_path / "w.pt")
        other = folded(Parts())
        load_into(other, tmp_path / "w.pt")
        assert equal(other.network.state_dict(), net.network.state_dict())
        assert (other.front.mean.item(), other.network.front.mean.item()) == (mean, 0.75)


def test_two_networks_in_one_file_are_not_mixed_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unexpected: teacher\.0\.weight, teacher\.0\.bias, .* and 6 more$"):
        loaded(prefixed("student.") | prefixed("teacher."), tmp_path / "w.pt")


def test_on_a_mismatch_the_keys_of_the_file_are_told(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError) as error:
        load_into(folded(plain()), tmp_path / "w.pt")
    assert str(error.value).endswith(
        "missing: 0.weight, 0.bias, 1.weight and 5 more; unexpected: features.0.weight, features.0.bias, "
        "features.3.squeeze.weight and 49 more; the file has: features.0.weight, features.0.bias, "
        "features.3.squeeze.weight and 49 more"
    )


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width_are_taken(kind: torch.dtype, tmp_path: Path) -> None:
    """Also if the counters of batch norms were made floats with them."""
    weights = {k: v.to(kind) for k, v in SOURCE.items()}
    assert equal(loaded(weights, tmp_path / "w.pt"), weights)


def test_counters_that_are_no_whole_numbers_are_refused(tmp_path: Path) -> None:
    weights = SOURCE | {"1.num_batches_tracked": torch.tensor(0.5)}
    with pytest.raises(UserError, match=r"of another type: 1\.num_batches_tracked torch\.float32 in the file"):
        loaded(weights, tmp_path / "w.pt")


# Content --------------------------------------------------------------------------------------------------------------


class Settings(dict[str, Any]):
    """As training scripts have: a class of their own."""


class Logger:
    def __init__(self) -> None:
        self.lines = ["a"]


BESIDE: dict[str, Any] = {
    "a numpy scalar": np.float64(0.9),
    "a numpy array": np.arange(3.0),
    "arguments": argparse.Namespace(lr=0.1, path=pathlib.Path("a"), gpus=[0]),
    "a path": pathlib.PurePosixPath("a/b"),
    "a set": {1, 2},
    "a mapping with a default": collections.defaultdict(list, {"loss": [0.1, np.float32(0.2)]}),
    "a namespace": types.SimpleNamespace(a=1),
    "a mapping of one's own": Settings(a=1),
    "an object of one's own": Logger(),
    "a class": nn.ReLU,
    "a network": nn.Sequential(nn.Linear(4, 3)),
}


@pytest.mark.parametrize(
    ("kind", "form"),
    [(k, "zip") for k in BESIDE] + [(k, "legacy") for k in BESIDE if k not in ("a class", "a network")],
)
def test_other_objects_beside_the_weights_are_left_unread(kind: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"beside": BESIDE[kind], "state_dict": SOURCE}, path, _use_new_zipfile_serialization=form == "zip")
    net = folded(plain())
    load_into(net, path)
    assert equal(net.network.state_dict(), SOURCE)


def test_a_class_that_is_not_installed_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("their_lab")
    module.Config = type("Config", (), {"__module__": "their_lab"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_lab", module)
    torch.save({"cfg": module.Config(), "net": SOURCE}, tmp_path / "w.pt")
    monkeypatch.delitem(sys.modules, "their_lab")
    assert equal(read_weights(tmp_path / "w.pt", own=list(SOURCE)), SOURCE)


def test_containers_that_hold_themselves_end(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"lists": []}
    loop["lists"] += [loop, loop["lists"]]
    torch.save(loop, tmp_path / "w.pt")
    with pytest.raises(UserError, match="it holds no weights"):
        read_weights(tmp_path / "w.pt")
    assert equal(loaded(loop | {"net": SOURCE}, tmp_path / "w.pt"), SOURCE)


def test_safetensors(tmp_path: Path) -> None:
    save = pytest.importorskip("safetensors.torch").save_file
    state = torchvision.models.mobilenet_v3_small(num_classes=7).half().state_dict()
    path = tmp_path / "model.safetensors"
    save(state, path)
    net = published((3, 32, 32), 7, nn.ReLU, name="mobilenet_v3_small", weights=str(path))
    assert equal(net.state_dict(), state)
    save(prefixed("model."), path)
    assert equal(read_weights(path, own=list(SOURCE)), SOURCE)
    data = path.read_bytes()
    for cut in (data[:30], data[:-4], data[: len(data) // 2], bytes(range(64))):
        path.write_bytes(cut)
        with pytest.raises(UserError, match=r"cannot be read as weights: it is cut off or damaged: download or copy"):
            read_weights(path)


# Other files ----------------------------------------------------------------------------------------------------------


def bytes_of(save: Callable[[Any], object]) -> bytes:
    save(file := io.BytesIO())
    return file.getvalue()


def zipped(*names: str) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return file.getvalue()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def weights(legacy: bool = False) -> bytes:
    return bytes_of(lambda file: torch.save(SOURCE, file, _use_new_zipfile_serialization=not legacy))


def program(path: Path) -> bytes:
    torch.export.save(torch.export.export(plain().eval(), (torch.zeros(1, 4),)), path)
    return path.read_bytes()


def converted(path: Path) -> bytes:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    snn, _ = convert(net, torch.rand(4, 1, 2, 2), MaxThreshold(1.0, 0.5), T=4)
    save_network(snn, path)
    return path.read_bytes()


SAVE = "write torch.save(network.state_dict(), 'weights.pt')"
CUT = "it is cut off or damaged: download or copy it again"
OTHERS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "nothing": (lambda path: b"", "it is empty: download or copy it again"),
    "text": (lambda path: b"hello", f"it is no file of torch.save or safetensors: where it was made, {SAVE}"),
    "HTML": (lambda path: b"\n<!DOCTYPE html><html>", "it is a web page: download the file itself, by its direct link"),
    "Git LFS": (lambda path: b"version https://git-lfs.github.com/spec/v1\noid", "it is a placeholder of Git LFS: run"),
    "JSON": (lambda path: b'{"layers": 3}', "it is text (JSON): look for the file of weights beside it"),
    "HDF5": (lambda path: b"\x89HDF\r\n\x1a\n", "it is an HDF5 file, as Keras writes them: build the network in PyT"),
    "an array": (lambda path: bytes_of(lambda file: np.save(file, np.ones(3))), "it is a NumPy array: it must be a st"),
    "arrays": (lambda path: bytes_of(lambda file: np.savez(file, a=np.ones(3))), "it holds NumPy arrays: where it was"),
    "ONNX": (lambda path: b"\x08\x07\x12\x07pytorch", f"it is an ONNX file: where it was made, {SAVE}"),
    "gzip": (lambda path: gzip.compress(weights()), "it is a compressed archive: unpack it first"),
    "zip": (lambda path: zipped("a.txt"), "it is a zip archive: unpack it first"),
    "TorchScript": (
        lambda path: bytes_of(lambda file: torch.jit.save(torch.jit.script(plain()), file)),
        "it is a TorchScript archive: if you trust it, write torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt",
    ),
    "torch.export": (program, f"it is a program of torch.export: where it was made, {SAVE}"),
    "a network": (
        lambda path: bytes_of(lambda file: torch.save({"model": Parts()}, file)),
        "whose code would be run: if you trust it, write torch.save(torch.load(FILE, weights_only=False).state_dict()",
    ),
    "our converted network": (converted, "it is a converted network: load it with snnexp.conversion.stored.load_netw"),
    "a pickle": (
        lambda path: pickle.dumps(SOURCE),
        "it is a plain pickle: if you trust it, write torch.save(pickle.load(open(FILE, 'rb')), 'weights.pt')",
    ),
    "another protocol": (
        lambda path: bytes_of(lambda file: torch.save(SOURCE, file, pickle_protocol=4)),
        "its pickle protocol is not torch's: if you trust it, write torch.save(torch.load(FILE), 'weights.pt')",
    ),
    "code": (
        lambda path: bytes_of(lambda file: torch.save({"net": SOURCE, "x": Evil()}, file)),
        f"it holds more than weights (posix.mkdir): where it was made, {SAVE}",
    ),
    "numbers": (lambda path: bytes_of(lambda file: torch.save({"lr": 1}, file)), "it holds no weights: where it was"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_told_apart_with_a_way_out(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made, said = OTHERS[kind]
    path = tmp_path / ("w.onnx" if kind == "ONNX" else "w.pt2")
    path.write_bytes(made(path))
    with pytest.raises(UserError) as error:
        read_weights(path)
    assert str(error.value).startswith(f"checkpoint={path} cannot be read as weights: it")
    assert said in str(error.value)
    assert not Path("evil").exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.8, 0.99])
def test_files_that_are_cut_off(share: float, legacy: bool, tmp_path: Path) -> None:
    data = weights(legacy)
    (tmp_path / "w.pt").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError) as error:
        read_weights(tmp_path / "w.pt")
    assert str(error.value).endswith(f"w.pt cannot be read as weights: {CUT}")


def test_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.weights=.*: it is a folder: name the file in it$"):
        read_weights(tmp_path, "model.weights")


def test_the_ways_out_work(tmp_path: Path) -> None:
    net = plain()
    torch.jit.script(net).save(tmp_path / "script.pt")
    torch.save(net, tmp_path / "pickled.pt")
    for state in (
        torch.jit.load(tmp_path / "script.pt").state_dict(),
        torch.load(tmp_path / "pickled.pt", weights_only=False).state_dict(),
    ):
        assert equal(loaded(state, tmp_path / "w.pt"), net.state_dict())
