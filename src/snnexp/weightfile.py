"""Read files of weights that anybody wrote: tensors and plain values only, never code. Other files are told apart.

A pickle may name any class. Each class that torch does not know is replaced by an empty stand-in, so that neither its
code nor its package is needed, and the tensors beside it can be read.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

SAVE = "torch.save(network.state_dict(), 'weights.pt')"
EXPORT = f"where it was made, write {SAVE}"
TRUSTED = "if you trust it, write torch.save({}, 'weights.pt') in Python"
CUT = "it is cut off or damaged: download or copy it again"
LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)  # the start of files of torch before 1.6
STARTS: tuple[tuple[tuple[bytes, ...], str], ...] = (  # of other files, and what to do with them
    ((b"<",), "it is a web page: download the file itself, by its direct link"),
    (
        (b"version https://git-lfs",),
        "it is a placeholder of Git LFS: run git lfs pull in the folder that it comes from",
    ),
    ((b"\x89HDF",), f"it is an HDF5 file, as Keras writes them: build the network in PyTorch and write {SAVE}"),
    ((b"\x93NUMPY",), "it is a NumPy array: it must be a state_dict, which has a tensor for each key"),
    ((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!"), "it is a compressed archive: unpack it first"),
    ((b"{", b"["), "it is text (JSON): look for the file of weights beside it"),
    ((LEGACY,), ""),
    ((b"\x80",), "it is a plain pickle: " + TRUSTED.format("pickle.load(open(FILE, 'rb'))")),
)
MEMBERS = (  # of other zip archives
    ("constants.pkl", "it is a TorchScript archive: " + TRUSTED.format("torch.jit.load(FILE).state_dict()")),
    ("archive_format", f"it is a program of torch.export: {EXPORT}"),
    (".npy", f"it holds NumPy arrays: {EXPORT}, or make tensors of them with torch.from_numpy"),
    ("/data.pkl", ""),
)
NETWORK = "it holds a pickled network ({}), whose code would be run: " + TRUSTED.format(
    "torch.load(FILE, weights_only=False).state_dict()"
)
STORED = {"format", "network", "modules", "nodes"}  # the keys of our own files of converted networks


class _Items:
    """A stand-in for a class: its objects become mappings with the items that they have, and their attributes."""

    def __new__(cls, *_: object, **__: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _State:
    """A stand-in for a class of NumPy, whose objects have a state that is no mapping."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def tables(path: Path) -> dict[str, Mapping[Any, Any]]:
    """Return every mapping in a file that has tensors among its values, by the keys that lead to it, joined by dots.

    The tensors are on the CPU. No code of the file is run. Raises ValueError, whose text completes "cannot be read as
    weights: ", for files that are not of torch.save or safetensors, or are damaged, or hold no tensors by name.
    """
    with path.open("rb") as file:
        start = file.read(32)
    if path.suffix.lower() == ".safetensors" or start[8:9] == b"{":
        return {"": _safetensors(path)}
    if told := _told(path, start):
        raise ValueError(told)
    found, names = _pickled(path)
    if isinstance(found, Mapping) and set(found) >= STORED:
        raise ValueError("it is a converted network: load it with snnexp.conversion.stored.load_network")
    inside = dict(_mappings(found))
    if holding := {place: m for place, m in inside.items() if any(isinstance(v, Tensor) for v in m.values())}:
        return holding
    if any("_modules" in vars(m) for m in inside.values() if isinstance(m, OrderedDict)):
        raise ValueError(NETWORK.format(", ".join(sorted(names)[:3])))
    raise ValueError(f"it holds no weights: {EXPORT}")


def _told(path: Path, start: bytes) -> str:
    """Return what a file is and what to do with it; "" if torch.load may read it."""
    if not start:
        return "it is empty: download or copy it again"
    if path.suffix.lower() == ".onnx":
        return f"it is an ONNX file: {EXPORT}"
    if not start.startswith(b"PK"):
        known = (said for starts, said in STARTS if start.lstrip().startswith(starts))
        return next(known, f"it is no file of torch.save or safetensors: {EXPORT}")
    if not zipfile.is_zipfile(path):
        return CUT
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    others = (said for end, said in MEMBERS if any(name.endswith(end) for name in names))
    return next(others, "it is a zip archive: unpack it first")


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(path)
        return found
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{CUT} (safetensors: {error})") from error


def _pickled(path: Path) -> tuple[Any, list[str]]:
    """Return the content of a file of torch.save, and the names of the classes that have stand-ins in it."""
    names: list[str] = []
    try:
        names = _unknown(path)
        stand_ins: list[Any] = [
            (type(name, (_State if name.startswith("numpy.") else _Items,), {}), name) for name in names
        ]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True), names
    except Exception as error:  # torch raises many types
        if "operand" in str(error):
            raise ValueError("its pickle protocol is not torch's: " + TRUSTED.format("torch.load(FILE)")) from error
        if names:
            raise ValueError(f"it holds more than weights ({', '.join(sorted(names)[:3])}): {EXPORT}") from error
        raise ValueError(CUT) from error


def _unknown(path: Path) -> list[str]:
    """Return the names in a file of torch.save that `torch.load` does not know."""
    if zipfile.is_zipfile(path):
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with path.open("rb") as file:
        named = {name for _ in range(4) for name in _named(file)}  # magic number, version, system, content
    known = ("torch.", "collections.OrderedDict")
    return [name for name in named if not name.startswith(known) or name.startswith("torch.nn.modules.")]


def _named(file: BinaryIO) -> Iterator[str]:
    """Yield the names in the next pickle of a file, and go to its end."""
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == "GLOBAL":
            yield str(argument).replace(" ", ".").replace("__builtin__.", "builtins.")


def _mappings(found: object) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield each mapping inside mappings and lists once, outer ones first, with the keys that lead to it."""
    seen, waiting = set[int](), [("", found)]
    while waiting:
        place, value = waiting.pop(0)
        if id(value) in seen or not isinstance(value, Mapping | list | tuple):
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            yield place, value
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        waiting += [(f"{place}.{key}" if place else str(key), inner) for key, inner in items]
