"""Image datasets: decoded once into a memory-mapped uint8 array, with mean and std, and split by seed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp.dataset.augment import Augment
from snnexp.dataset.base import Data, Split, split_train, validation_share
from snnexp.dataset.foreign import regular
from snnexp.dataset.prepare import digest, in_order, prepared_once, progress
from snnexp.errors import InvalidValue, number, require

log = logging.getLogger(__name__)
CHUNK, CHUNK_BYTES = 256, 1 << 24  # images decoded at a time: not more than that many, nor (but for one) bytes
Bytes = NDArray[np.uint8]


class Part(NamedTuple):
    """Images to prepare: `labels`, and `read(rows)`, which returns uint8 [len(rows), C, H, W]."""

    labels: Sequence[int]
    read: Callable[[range], Bytes]


@dataclass(frozen=True)
class Options:
    """Options of all image datasets; see conf/dataset/cifar10.yaml.

    `validation`: share of the training images that validates, drawn by `seed`. `mean`, `std`: per channel, in units of
    255; None: those of the training images, computed once and stored. `in_memory`: read the prepared array whole
    instead of mapping it. `augment`: applied to training batches. Raises InvalidValue.
    """

    cache: str | Path
    validation: float = 0.1
    seed: int = 0
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    in_memory: bool = False
    augment: Augment | None = None

    def __post_init__(self) -> None:
        validation_share(self.validation)
        require(isinstance(self.in_memory, bool), "in_memory", self.in_memory, "true or false")
        for name, values in (("mean", self.mean), ("std", self.std)):
            for value in values or ():
                number(
                    name,
                    value,
                    "numbers in units of the largest value, std above 0",
                    at_least=0,
                    above=0 if name == "std" else -1,
                )


def load(
    name: str,
    parts: Callable[[], tuple[Part, Part]],
    identity: object,
    classes: Sequence[str],
    options: Options,
    size: int | None = None,
) -> Data:
    """Load `Data` with x uint8 [n, C, H, W] from the prepared cache; if it is missing, `parts()` (train, test) fill it.

    `identity` identifies the images and how they are read: it keys the cache. Of stored images larger than `size`, the
    middle is shown; `augment.zoom` takes its parts from the whole. Test images never validate. Raises InvalidValue, and
    what reading raises.
    """
    directory = prepared_once(
        Path(options.cache).expanduser() / name / f"images-{digest(identity=identity)}",
        lambda to: _store(name, parts(), to),
    )
    meta = json.loads((directory / "meta.json").read_text())
    # copy-on-write, because torch has no read-only tensors
    x = torch.from_numpy(np.load(directory / "images.npy", mmap_mode=None if options.in_memory else "c"))
    y = torch.from_numpy(np.load(directory / "labels.npy"))
    shown, augment = middle(x, size), options.augment
    if zoom := augment is not None and augment.zoom is not None:
        augment = replace(augment, size=size)
    shape, trained = tuple(shown.shape[1:]), meta["train"]
    if trained < 2:
        raise InvalidValue("root", name, "a folder with at least two training images, one of which validates")
    kept, held_out = split_train(trained, options.validation, options.seed)
    mean, std = options.mean or meta["mean"], options.std or meta["std"]
    for key, values in (("mean", mean), ("std", std)):
        require(len(values) == shape[0], key, list(values), f"{shape[0]} numbers, one per channel")
    log.info("%s: %d images to train, %d to validate, %d to test", name, len(kept), len(held_out), len(y) - trained)
    return Data(
        name,
        Split(x if zoom else shown, y, kept),
        Split(shown, y, held_out),
        Split(shown, y, torch.arange(trained, len(y))),
        shape=shape,
        classes=tuple(classes),
        temporal=False,
        augment=augment,
        normalize=(tuple(mean), tuple(std)),
    )


def middle(x: Tensor, size: int | None) -> Tensor:
    """Return the middle `size` x `size` pixels of x [n, C, H, W] as a view; x itself if `size` is None or x's size."""
    if size is None or tuple(x.shape[2:]) == (size, size):
        return x
    top, left = ((side - size) // 2 for side in x.shape[2:])
    return x[:, :, top : top + size, left : left + size]


def _store(name: str, parts: Sequence[Part], directory: Path) -> None:
    """Write `parts`, in order, to `directory`: images.npy, labels.npy, meta.json; mean and std are of the first."""
    labels = np.array([label for part in parts for label in part.labels], np.int64)
    first = parts[0].read(range(min(1, len(parts[0].labels))))
    size = max(1, min(CHUNK, CHUNK_BYTES // max(1, first.nbytes)))
    chunks = [
        (part, range(start, min(start + size, len(part.labels))))
        for part in parts
        for start in range(0, len(part.labels), size)
    ]
    bar = progress(
        in_order(lambda chunk: chunk[0].read(chunk[1]), chunks), f"{name}: reading", len(labels), len, "images"
    )
    sums = Sums()
    with (directory / "images.npy").open("wb") as file:  # not mapped: a full disk raises an error, not SIGBUS
        left = len(parts[0].labels)
        for number_of_chunk, images in enumerate(bar):
            if number_of_chunk == 0:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *images.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            if left > 0:
                sums.add(images[:left])
                left -= len(images)
            file.write(images.tobytes())
    np.save(directory / "labels.npy", labels)
    mean, std = sums.moments()
    (directory / "meta.json").write_text(json.dumps({"train": len(parts[0].labels), "mean": mean, "std": std}))


class Sums:
    """Counts of pixels by channel and value, which give exact mean and std for any number of images."""

    def __init__(self) -> None:
        self.counts: list[NDArray[np.int64]] = []

    def add(self, images: Bytes) -> Sums:
        """Count the pixels of `images` uint8 [n, C, H, W] too, and return self."""
        new = [np.bincount(channel.ravel(), minlength=256) for channel in images.transpose(1, 0, 2, 3)]
        self.counts = [a + b for a, b in zip(self.counts, new, strict=True)] if self.counts else new
        return self

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return (mean, std) of each channel over all its pixels, in units of 255; constant channels have std 1."""
        level = np.arange(256) / 255
        means = [float((c * level).sum() / c.sum()) for c in self.counts]
        stds = [float(np.sqrt((c * (level - m) ** 2).sum() / c.sum())) for c, m in zip(self.counts, means, strict=True)]
        return tuple(means), tuple(std or 1.0 for std in stds)


def files(paths: Iterable[Path], limit: int | None = None) -> list[object]:
    """Return name, size and modification time of each file, which change when the files do.

    Raises UserError for what is no regular file of at most `limit` bytes.
    """
    return [[str(path), (stat := regular(path, limit)).st_size, stat.st_mtime_ns] for path in paths]


def of_array(images: Bytes, labels: Sequence[int]) -> Part:
    """Return a `Part` of images uint8 [n, C, H, W] in memory."""
    return Part(labels, partial(_rows, images))


def _rows(images: Bytes, rows: range) -> Bytes:
    return images[rows.start : rows.stop]
