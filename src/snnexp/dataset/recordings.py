"""Load recordings from folders or zip archives as `Data`: binned once, memory-mapped, split by seed. `Folder` and
`Archive` have N-MNIST's layout."""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from snnexp.dataset import events, frames
from snnexp.dataset.base import Data, validation_share
from snnexp.dataset.foreign import RECORDING_BYTES, Zip, by_number, listed, regular, shown
from snnexp.dataset.manifest import content
from snnexp.dataset.prepare import digest, in_order, prepared_once, progress, ranges, store, stored
from snnexp.errors import choice, integer

log = logging.getLogger(__name__)
CHUNK = 64 * events.HEIGHT * events.WIDTH  # pixels binned at a time, summed over the recordings of a chunk
MEMBER = re.compile(r"(?:^|/)(?P<label>[0-9])/(?P<number>[^/]*)\.bin\Z")
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class RecordingOptions:
    """RecordingOptions of all datasets of recordings. Raises InvalidValue for a value out of range.

    `timesteps`, `bins`, `values` and `duration` (us) turn recordings into frames, see `frames.py`; those are kept in
    `cache`. `validation`: share of the training recordings that validates, drawn by `seed`.
    """

    cache: str | Path
    timesteps: int
    bins: str = "count"
    values: str = "count"
    duration: int = 315_000
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        integer("timesteps", self.timesteps, at_least=1)
        choice("bins", self.bins, ("time", "count"))
        choice("values", self.values, ("count", "binary"))
        integer("duration", self.duration, at_least=1)
        validation_share(self.validation)

    @property
    def binning(self) -> dict[str, Any]:
        """The settings that turn recordings into frames."""
        return {name: getattr(self, name) for name in ("timesteps", "bins", "values", "duration")}


class Folder:
    """The recordings `<label>/<number>.bin` below `path`, sorted by number; `limit` keeps only the first ones."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        names = (f"{label}/{name}" for label in DIGITS for name in listed(path / label))
        found = by_number(names, MEMBER, path)[:limit]
        self.path, self.files = path, [path / match.string for match in found]
        self.labels = [int(match["label"]) for match in found]

    def identity(self) -> list[object]:
        """Return path, size and modification time of each file, which change when the files do."""
        pairs = zip(self.files, self.labels, strict=True)
        stats = [(p.name, label, (s := regular(p, RECORDING_BYTES)).st_size, s.st_mtime_ns) for p, label in pairs]
        return [str(self.path.resolve()), *stats]

    def read(self, k: int) -> events.Events:
        """Return the events of recording `k`."""
        return events.read_events(self.files[k])


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


class RecordingSource(Protocol):
    """Recordings: their labels, and `read(k)`, which returns the events of recording `k`."""

    labels: list[int]

    def read(self, k: int) -> events.Events: ...


def load_recordings(
    name: str,
    train: RecordingSource,
    test: RecordingSource,
    identity: object,
    options: RecordingOptions,
    classes: tuple[str, ...] = DIGITS,
    side: int = events.HEIGHT,
) -> Data:
    """Load `Data` with x uint8 [n, T, 2, side, side] (channel 0 OFF, 1 ON), mapped from the cache, binned if needed.

    `identity` identifies the recordings; with the binning it keys the cache. Test recordings never validate. Raises
    UserError (EventFileError) for a recording that cannot be read, InvalidValue if none is left to train on.
    """
    key = digest(identity=identity, binning=options.binning)
    folder = Path(options.cache).expanduser() / name
    directory = prepared_once(folder / f"frames-{key}", partial(_bin, name, (train, test), options, side))
    x, y, meta = stored(directory, "frames")
    if meta["saturated"]:
        log.warning("%s: %d cells hold more than 255 events and were clipped at 255", name, meta["saturated"])
    settings = {"shape": tuple(x.shape[2:]), "classes": classes, "temporal": True}
    settings["content"] = content(directory, "frames.npy", "labels.npy")
    data = Data.of(name, x, y, meta["train"], options.validation, options.seed, **settings)
    sizes = len(data.train), len(data.val), len(data.test)
    log.info("%s: %d recordings to train, %d to validate, %d to test", name, *sizes)
    return data


def _bin(name: str, sources: Sequence[RecordingSource], options: RecordingOptions, side: int, directory: Path) -> None:
    """Bin `sources`, in order, into `directory`: frames.npy, labels.npy, meta.json."""
    chunks = [(source, rows) for source in sources for rows in ranges(len(source.labels), max(1, CHUNK // side**2))]
    labels = np.array([label for source in sources for label in source.labels], np.int64)
    saturated = []

    def binned(chunk: tuple[RecordingSource, range]) -> tuple[NDArray[np.uint8], int]:
        source, rows = chunk
        made = []
        for k in rows:  # one by one, so that only one recording's events are in memory
            counts = frames.count([source.read(k)], options.timesteps, options.bins, options.duration, side, side)
            made.append(frames.to_bytes(counts, options.values))
        return np.concatenate([array for array, _ in made]), sum(cut for _, cut in made)

    def arrays() -> Iterator[NDArray[np.uint8]]:
        read = in_order(binned, chunks)
        for array, cut in progress(read, f"{name}: binning", len(labels), lambda chunk: len(chunk[0])):
            saturated.append(cut)
            yield array

    store(directory, "frames", labels, arrays())
    meta = {"train": len(sources[0].labels), "test": len(sources[1].labels), "saturated": sum(saturated)}
    (directory / "meta.json").write_text(json.dumps(meta | options.binning))
