"""Image datasets: decoded once into a memory-mapped uint8 array, with mean and std, and split by seed."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from snnexp.dataset.augment import Augment
from snnexp.dataset.base import Data, validation_share
from snnexp.dataset.foreign import regular
from snnexp.dataset.manifest import content
from snnexp.dataset.prepare import digest, in_order, prepared_once, progress, ranges, store, stored
from snnexp.errors import InvalidValue, boolean, number, require

log = logging.getLogger(__name__)
CHUNK, CHUNK_BYTES = 256, 1 << 24  # images decoded at a time: not more than that many, nor (but for one) bytes
Bytes = NDArray[np.uint8]


class Part(NamedTuple):
    """Images to prepare: `labels`, and `read(rows)`, which returns uint8 [len(rows), C, H, W]."""

    labels: Sequence[int]
    read: Callable[[range], Bytes]


@dataclass(frozen=True)
class ImageOptions:
    """ImageOptions of all image datasets; see conf/dataset/cifar10.yaml.

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
        boolean("in_memory", self.in_memory)
        for name, values in (("mean", self.mean), ("std", self.std)):
            above, allowed = 0 if name == "std" else -1, "numbers in units of the largest value, std above 0"
            for value in values or ():
                number(name, value, allowed, at_least=0, above=above)


def load_images(
    name: str,
    parts: Callable[[], tuple[Part, Part]],
    identity: object,
    classes: Sequence[str],
    options: ImageOptions,
    size: int | None = None,
) -> Data:
    """Load `Data` with x uint8 [n, C, H, W] from the prepared cache; if it is missing, `parts()` (train, test) fill it.

    `identity` identifies the images and how they are read: it keys the cache. Of stored images larger than `size`, the
    middle is shown; `augment.zoom` takes its parts from the whole. Test images never validate. Raises InvalidValue, and
    what reading raises.
    """
    key = digest(identity=identity)
    folder = Path(options.cache).expanduser() / name / f"images-{key}"
    directory = prepared_once(folder, lambda to: _store(name, parts(), to))
    x, y, meta = stored(directory, "images", options.in_memory)
    shown, trained = middle(x, size), meta["train"]
    if trained < 2:
        raise InvalidValue("root", name, "a folder with at least two training images, one of which validates")
    shape, mean, std = tuple(shown.shape[1:]), options.mean or meta["mean"], options.std or meta["std"]
    for key, values in (("mean", mean), ("std", std)):
        require(len(values) == shape[0], key, list(values), f"{shape[0]} numbers, one per channel")
    settings = {"shape": shape, "classes": tuple(classes), "normalize": (tuple(mean), tuple(std)), "temporal": False}
    settings["content"] = content(directory, "images.npy", "labels.npy")
    data = Data.of(name, shown, y, trained, options.validation, options.seed, augment=options.augment, **settings)
    log.info("%s: %d images to train, %d to validate, %d to test", name, len(data.train), len(data.val), len(data.test))
    if options.augment is not None and options.augment.zoom is not None:
        return replace(data, train=replace(data.train, x=x), augment=replace(options.augment, size=size))
    return data


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
    chunks = [(part, rows) for part in parts for rows in ranges(len(part.labels), size)]
    read = in_order(lambda chunk: chunk[0].read(chunk[1]), chunks)
    sums = Sums()

    def summed() -> Iterator[Bytes]:
        left = len(parts[0].labels)
        for images in progress(read, f"{name}: reading", len(labels), len, "images"):
            if left > 0:
                sums.add(images[:left])
                left -= len(images)
            yield images

    store(directory, "images", labels, summed())
    mean, std = sums.moments()
    (directory / "meta.json").write_text(json.dumps({"train": len(parts[0].labels), "mean": mean, "std": std}))


class Sums:
    """Counts of pixels by channel and value, which give exact mean and std for any number of images."""

    def __init__(self) -> None:
        self.counts: list[NDArray[np.int64]] = []

    def add(self, images: Bytes) -> Self:
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
