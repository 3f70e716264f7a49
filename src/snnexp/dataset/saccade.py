"""Image datasets seen by the simulated event camera: scikit-learn's digits (embedded), MNIST, FashionMNIST."""

import gzip
import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

from snnexp.dataset import events
from snnexp.dataset.base import Data
from snnexp.dataset.camera import IMAGE, VERSION, Camera
from snnexp.dataset.digits import Images, read_digits
from snnexp.dataset.foreign import opened, refused, shown
from snnexp.dataset.images import files
from snnexp.dataset.prepare import digest, in_order, prepared_once, progress
from snnexp.dataset.recordings import DIGITS, Folder, RecordingOptions, load_recordings
from snnexp.errors import UserError, integer_or_none

log = logging.getLogger(__name__)
IDX_BYTES = 1 << 28  # of an MNIST file, unpacked: five times the largest
CHUNK = 32  # images simulated at a time: few, so that arrays stay in the cache and are not mapped again at each step
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def digits_saccade(cache: str | Path, timesteps: int, camera: Camera | None = None, **options: Any) -> Data:
    """Load scikit-learn's 1,797 digits (1,437 for training and validation, 360 for test) as seen by `camera`.

    For the other arguments and the result see `RecordingOptions` and `load_recordings`.
    """
    chosen = RecordingOptions(cache, timesteps, **options)
    return _filmed("digits_saccade", enlarged_digits, "scikit-learn digits, split 1", camera or Camera(), chosen)


def mnist_saccade(
    root: str | Path,
    cache: str | Path,
    timesteps: int,
    camera: Camera | None = None,
    train_samples: int | None = None,
    test_samples: int | None = None,
    download: bool = False,
    name: str = "mnist_saccade",
    folder: str = "MNIST",
    classes: tuple[str, ...] = DIGITS,
    **options: Any,
) -> Data:
    """Load MNIST as seen by `camera`, from torchvision's files below `root`.

    `train_samples` and `test_samples` use only that many images, the first (None: all). `download=True` lets
    torchvision fetch them. Raises UserError that says where it looked if there are none. For the other arguments and
    the result see `RecordingOptions` and `load_recordings`.
    """
    chosen, train_limit = (
        RecordingOptions(cache, timesteps, **options),
        integer_or_none("train_samples", train_samples, at_least=2),
    )
    limits = train_limit, integer_or_none("test_samples", test_samples, at_least=1)
    root = Path(root).expanduser()
    if download:
        from torchvision import datasets

        fetch(getattr(datasets, folder), root)
    paths = idx_files(root / folder / "raw")

    def images() -> tuple[Images, Images]:
        read = (read_images(paths[k : k + 2], len(classes)) for k in (0, 2))
        train, test = (Images(x[:cut], y[:cut]) for (x, y), cut in zip(read, limits, strict=True))
        return train, test

    source = [files((path.resolve() for path in paths), IDX_BYTES), limits]
    return _filmed(name, images, source, camera or Camera(), chosen, classes)


def fashion_mnist_saccade(root: str | Path, cache: str | Path, timesteps: int, **settings: Any) -> Data:
    """Do the same as `mnist_saccade` with torchvision's FashionMNIST."""
    named: dict[str, Any] = {"name": "fashion_mnist_saccade", "folder": "FashionMNIST", "classes": CLOTHES}
    return mnist_saccade(root, cache, timesteps, **settings, **named)


def enlarged_digits() -> tuple[Images, Images]:
    """Return scikit-learn's digits enlarged to MNIST's size, uint8 [n, 28, 28]: (train 1,437, test 360)."""
    import torch
    from torch.nn.functional import interpolate, pad

    def enlarged(images: Images) -> Images:
        small = torch.from_numpy(images.x).unsqueeze(1).float() / 16
        box = interpolate(small, size=(20, 20), mode="bicubic").clamp(0, 1)[:, 0]  # as MNIST's digits in 28 x 28
        return Images((pad(box, 4 * [(IMAGE - 20) // 2]) * 255).round().byte().numpy(), images.y)

    train, test = read_digits()
    return enlarged(train), enlarged(test)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read the array in an MNIST file, gzipped or not (LeCun et al. 1998). Raises UserError if it is damaged."""
    with opened(path, IDX_BYTES) as file:
        return decode_idx(gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file, str(path))


def decode_idx(file: io.BufferedIOBase, name: str) -> NDArray[np.uint8]:
    """Read the array of unsigned bytes in an opened idx file; its header must state exactly what follows.

    Raises UserError, which names `name`, for anything else and for more than IDX_BYTES.
    """
    with refused(f"{shown(name)} is damaged or not an MNIST file"):
        start = file.read(4)
        if start not in (b"\0\0\x08\x01", b"\0\0\x08\x03"):
            raise ValueError("it does not start like a file of unsigned bytes in one or three dimensions")
        shape = np.frombuffer(file.read(4 * start[3]), ">u4", start[3]).tolist()
        if (size := math.prod(shape)) > IDX_BYTES:
            raise ValueError(f"its header states {size:,} bytes, more than the {IDX_BYTES:,} that are read")
        data = file.read(size + 1)  # the end of a gzipped file, with its checksum, is read as well
        if len(data) != size:
            raise ValueError(
                f"its header states {size:,} bytes, but it has {'more' if len(data) > size else len(data)}"
            )
        return np.frombuffer(data, np.uint8).reshape(shape)


def read_images(paths: Sequence[Path], classes: int) -> Images:
    """Read (MNIST images [n, 28, 28], their labels) from two files. Raises UserError that names the one at fault."""
    images, labels = paths
    x, y = map(read_idx, paths)
    if x.shape[1:] != (IMAGE, IMAGE) or not len(x):
        raise UserError(f"{shown(images)} holds an array of shape {x.shape}, not images of {IMAGE} x {IMAGE}")
    if y.shape != x.shape[:1]:
        raise UserError(f"{shown(labels)} holds an array of shape {y.shape}, not a label for each of {len(x):,} images")
    if (y >= classes).any():
        raise UserError(f"{shown(labels)} holds the label {y.max()}: there are {classes} classes, from 0 on")
    return Images(x, y.astype(np.int64))


def fetch(kind: Callable[..., Any], root: Path) -> None:
    """Let torchvision download `kind` to `root`, with a progress bar. Raises UserError with the reason if it cannot."""
    try:
        kind(str(root), download=True)
    except (OSError, RuntimeError) as error:
        name, reason = getattr(kind, "__name__", str(kind)), " ".join(str(error).split())
        raise UserError(
            f"{name} cannot be fetched to {root}: {reason} Without a network, copy the files there "
            "or point dataset.root at a folder that has them"
        ) from error


def idx_files(raw: Path) -> list[Path]:
    """Return training images, training labels, test images and test labels in `raw`, the files of MNIST."""
    return [_idx_file(raw, f"{split}-{part}") for split in ("train", "t10k") for part in ("images-idx3", "labels-idx1")]


def _idx_file(raw: Path, part: str) -> Path:
    """Return the file `part` (e.g. train-images-idx3) in `raw`, gzipped or not. Raises UserError that names `raw`."""
    for path in (raw / f"{part}-ubyte", raw / f"{part}-ubyte.gz"):
        if path.exists():
            return path
    raise UserError(
        f"no {part}-ubyte or {part}-ubyte.gz in {raw.resolve()}: point dataset.root at torchvision's "
        "folder, or set dataset.download=true to let torchvision fetch it"
    )


def _filmed(
    name: str,
    images: Callable[[], tuple[Images, Images]],
    source: object,
    camera: Camera,
    options: RecordingOptions,
    classes: tuple[str, ...] = DIGITS,
) -> Data:
    """Record `images` once by `camera` into N-MNIST files in the cache and load those; `source` names the images."""
    key = digest(version=VERSION, source=source, camera=asdict(camera))

    def record(directory: Path) -> None:
        film(camera, dict(zip(("Train", "Test"), images(), strict=True)), directory, name)

    directory = prepared_once(Path(options.cache).expanduser() / name / f"recordings-{key}", record)
    return load_recordings(name, Folder(directory / "Train"), Folder(directory / "Test"), key, options, classes)


def film(camera: Camera, images: dict[str, Images], directory: Path, name: str) -> None:
    """Record the images of each split as `directory/<split>/<label>/<number>.bin`, numbered from 1 as in N-MNIST."""
    for split, (_, labels) in images.items():
        for label in np.unique(labels):
            (directory / split / str(label)).mkdir(parents=True)
    chunks = [(split, start) for split, (_, labels) in images.items() for start in range(0, len(labels), CHUNK)]

    def shoot(chunk: tuple[str, int]) -> int:
        split, start = chunk
        x, y = images[split].x[start : start + CHUNK], images[split].y[start : start + CHUNK]
        keys = [2 * k + (split == "Test") for k in range(start, start + len(y))]
        for k, (recording, label) in enumerate(zip(camera.record(x, keys), y, strict=True)):
            events.write(directory / split / str(label) / f"{start + k + 1:05d}.bin", recording)
        return len(y)

    with threadpool_limits(1):  # `in_order` already runs one thread per core; BLAS threads would only get in the way
        for _ in progress(in_order(shoot, chunks), f"{name}: recording", sum(len(y) for _, y in images.values()), int):
            pass
