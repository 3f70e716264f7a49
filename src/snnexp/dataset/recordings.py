"""Load recordings from folders or zip archives as `Data`: binned once, memory-mapped, split by seed. `Folder` and
`Archive` have N-MNIST's layout."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from snnexp.dataset import events, frames
from snnexp.dataset.base import Data, Split, split_train, validation_share
from snnexp.dataset.foreign import RECORDING_BYTES, Zip, by_number, listed, regular, shown
from snnexp.dataset.prepare import digest, in_order, prepared_once, progress
from snnexp.errors import choice, integer

log = logging.getLogger(__name__)
CHUNK = 64 * events.HEIGHT * events.WIDTH  # pixels binned at a time, summed over the recordings of a chunk
MEMBER = re.compile(r"(?:^|/)(?P<label>[0-9])/(?P<number>[^/]*)\.bin\Z")
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Binning:
    """The settings that turn recordings into frames; see `frames.py`. Raises InvalidValue for a value out of range."""

    timesteps: int
    bins: str = "count"
    values: str = "count"
    duration: int = 315_000

    def __post_init__(self) -> None:
        integer("timesteps", self.timesteps, at_least=1)
        choice("bins", self.bins, ("time", "count"))
        choice("values", self.values, ("count", "binary"))
        integer("duration", self.duration, at_least=1)


class Folder:
    """The recordings `<label>/<number>.bin` below `path`, sorted by number; `limit` keeps only the first ones."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        names = (f"{label}/{name}" for label in DIGITS for name in listed(path / label))
        found = by_number(names, MEMBER, path)[:limit]
        self.path, self.files = path, [path / match.string for match in found]
        self.labels = [int(match["label"]) for match in found]

    def identity(self) -> list[object]:
        """Return path, size and modification time of each file, which change when the files do."""
        stats = ((p, regular(p, RECORDING_BYTES)) for p in self.files)
        return [
            str(self.path.resolve()),
            *((p.name, label, s.st_size, s.st_mtime_ns) for label, (p, s) in zip(self.labels, stats, strict=True)),
        ]

    def read(self, k: int) -> events.Events:
        """Return the events of recording `k`."""
        return events.read(self.files[k])


class Archive:
    """The same as `Folder`, in the zip file `path`."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.zip = Zip(path, ".bin")
        found = by_number(self.zip.names, MEMBER, path)[:limit]
        self.names, self.labels = [match.string for match in found], [int(match["label"]) for match in found]

    def identity(self) -> list[object]:
        """Return the archive's identity and the number of recordings used."""
        return [*self.zip.identity(), len(self.names)]

    def read(self, k: int) -> events.Events:
        """Return the events of recording `k`."""
        name = f"{shown(self.zip.path)}:{shown(self.names[k])}"
        return events.decode(events.not_empty(self.zip.read(self.names[k]), name), name=name)


class Source(Protocol):
    """Recordings: their labels, and `read(k)`, which returns the events of recording `k`."""

    labels: list[int]

    def read(self, k: int) -> events.Events: ...


def load(
    name: str,
    train: Source,
    test: Source,
    identity: object,
    cache: str | Path,
    binning: Binning,
    validation: float,
    seed: int,
    classes: tuple[str, ...] = DIGITS,
    side: int = events.HEIGHT,
) -> Data:
    """Load `Data` with x uint8 [n, T, 2, side, side] (channel 0 OFF, 1 ON), mapped from `cache`, binned if needed.

    `identity` identifies the recordings; with the binning it keys the cache. `seed` draws the share `validation` (0 to
    1) of training recordings that validates; test recordings never validate. Raises UserError (EventFileError) for a
    recording that cannot be read, InvalidValue for a value out of range.
    """
    validation_share(validation)
    key = digest(identity=identity, binning=vars(binning))
    folder = Path(cache).expanduser() / name
    directory = prepared_once(folder / f"frames-{key}", partial(_bin, name, (train, test), binning, side))
    meta = json.loads((directory / "meta.json").read_text())
    if meta["saturated"]:
        log.warning("%s: %d cells hold more than 255 events and were clipped at 255", name, meta["saturated"])
    # copy-on-write, because torch has no read-only tensors: writing to x changes neither the file nor other processes
    x = torch.from_numpy(np.load(directory / "frames.npy", mmap_mode="c"))
    y = torch.from_numpy(np.load(directory / "labels.npy"))
    kept, held_out = split_train(meta["train"], validation, seed)
    log.info("%s: %d recordings to train, %d to validate, %d to test", name, len(kept), len(held_out), meta["test"])
    rows = torch.arange(meta["train"], meta["train"] + meta["test"])
    return Data(
        name,
        Split(x, y, kept),
        Split(x, y, held_out),
        Split(x, y, rows),
        shape=tuple(x.shape[2:]),
        classes=classes,
        temporal=True,
    )


def _bin(name: str, sources: Sequence[Source], binning: Binning, side: int, directory: Path) -> None:
    """Bin `sources`, in order, into `directory`: frames.npy, labels.npy, meta.json."""
    size = max(1, CHUNK // side**2)
    chunks = [
        (source, range(start, min(start + size, len(source.labels))))
        for source in sources
        for start in range(0, len(source.labels), size)
    ]

    def binned(chunk: tuple[Source, range]) -> tuple[NDArray[np.uint8], int]:
        source, rows = chunk
        made = []
        for k in rows:  # one by one, so that only one recording's events are in memory
            counts = frames.count([source.read(k)], binning.timesteps, binning.bins, binning.duration, side, side)
            made.append(frames.to_bytes(counts, binning.values))
        return np.concatenate([array for array, _ in made]), sum(cut for _, cut in made)

    labels = np.array([label for source in sources for label in source.labels], np.int64)
    shape = (len(labels), binning.timesteps, frames.POLARITIES, side, side)
    saturated = 0
    with (directory / "frames.npy").open("wb") as file:  # not mapped: a full disk raises an error, not SIGBUS
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        bar = progress(in_order(binned, chunks), f"{name}: binning", len(labels), lambda chunk: len(chunk[0]))
        for array, cut in bar:
            file.write(array.tobytes())
            saturated += cut
    np.save(directory / "labels.npy", labels)
    meta = {"train": len(sources[0].labels), "test": len(sources[1].labels), "saturated": saturated}
    (directory / "meta.json").write_text(json.dumps(meta | vars(binning)))
