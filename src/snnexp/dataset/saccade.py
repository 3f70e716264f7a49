"""Image sets seen by the simulated event camera: scikit-learn's digits (embedded), MNIST, FashionMNIST."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

from snnexp.dataset import digits as bundled
from snnexp.dataset import events
from snnexp.dataset.base import Data, validation_share
from snnexp.dataset.camera import IMAGE, VERSION, Camera
from snnexp.dataset.digits import Images
from snnexp.dataset.nmnist import limit
from snnexp.dataset.prepare import digest, in_order, prepared_once, progress
from snnexp.dataset.recordings import DIGITS, Binning, Folder, load
from snnexp.errors import UserError

log = logging.getLogger(__name__)
CHUNK = 32  # images the camera sees at a time: its arrays then stay in the cache and are not mapped anew at each step
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def digits_saccade(
    cache: str | Path,
    timesteps: int,
    bins: str = "count",
    values: str = "count",
    duration: int = 315_000,
    validation: float = 0.1,
    seed: int = 0,
    camera: Camera | None = None,
) -> Data:
    """scikit-learn's 1,797 handwritten digits (1,437 to train and validate, 360 to test) seen by `camera`.

    See `recordings.load` and `frames.bin_of_event` for the other arguments and for what is returned.
    """
    return _filmed(
        "digits_saccade",
        digits,
        "scikit-learn digits, split 1",
        camera or Camera(),
        cache,
        Binning(timesteps, bins, values, duration),
        validation,
        seed,
    )


def mnist_saccade(
    root: str | Path,
    cache: str | Path,
    timesteps: int,
    bins: str = "count",
    values: str = "count",
    duration: int = 315_000,
    validation: float = 0.1,
    seed: int = 0,
    camera: Camera | None = None,
    train_samples: int | None = None,
    test_samples: int | None = None,
    download: bool = False,
    name: str = "mnist_saccade",
    folder: str = "MNIST",
    classes: tuple[str, ...] = DIGITS,
) -> Data:
    """torchvision's MNIST below `root` seen by `camera`: the first `train_samples` and `test_samples`, null for all.

    `download=True` lets torchvision fetch the images. Raises UserError that says where it looked if there are none.
    See `recordings.load` and `frames.bin_of_event` for the other arguments and for what is returned.
    """
    binning = Binning(timesteps, bins, values, duration)
    limits = limit("train_samples", train_samples, 2), limit("test_samples", test_samples, 1)
    raw = Path(root).expanduser() / folder / "raw"
    if download:
        from torchvision import datasets

        try:
            getattr(datasets, folder)(str(Path(root).expanduser()), download=True)
        except (OSError, RuntimeError) as error:
            why = str(error).splitlines()[0][:200]
            raise UserError(f"dataset.download=true: torchvision could not fetch {folder}: {why}") from error
    files = [find_idx(raw, f"{split}-{part}") for split in ("train", "t10k") for part in ("images-idx3", "labels-idx1")]
    source = [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]

    def images() -> tuple[Images, Images]:
        train, test = (
            Images(read_idx(files[k])[:cut], read_idx(files[k + 1])[:cut].astype(np.int64))
            for k, cut in zip((0, 2), limits, strict=True)
        )
        return train, test

    return _filmed(name, images, [source, limits], camera or Camera(), cache, binning, validation, seed, classes)


def fashion_mnist_saccade(root: str | Path, cache: str | Path, timesteps: int, **settings: Any) -> Data:
    """Do as `mnist_saccade`, with torchvision's FashionMNIST."""
    named: dict[str, Any] = {"name": "fashion_mnist_saccade", "folder": "FashionMNIST", "classes": CLOTHES}
    return mnist_saccade(root, cache, timesteps, **settings, **named)


def digits() -> tuple[Images, Images]:
    """scikit-learn's digits drawn as large as MNIST's, uint8 [n, 28, 28]: (train 1,437, test 360)."""
    import torch
    from torch.nn.functional import interpolate, pad

    def enlarged(images: Images) -> Images:
        small = torch.from_numpy(images.x).unsqueeze(1).float() / 16
        box = interpolate(small, size=(20, 20), mode="bicubic").clamp(0, 1)[:, 0]  # MNIST's fill 20 x 20 of 28 x 28
        return Images((pad(box, 4 * [(IMAGE - 20) // 2]) * 255).round().byte().numpy(), images.y)

    train, test = bundled.read()
    return enlarged(train), enlarged(test)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an MNIST file, gzipped or not. Raises UserError if it is damaged (format: LeCun et al. 1998)."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
        zero, kind, axes = int.from_bytes(data[:2], "big"), data[2], data[3]
        if (zero, kind) != (0, 8):
            raise ValueError("it does not start as a file of unsigned bytes does")
        shape = np.frombuffer(data, ">u4", axes, 4).astype(int)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(f"{path} is damaged or no MNIST file: {error}") from error


def find_idx(raw: Path, part: str) -> Path:
    """The file `part` (e.g. train-images-idx3) in `raw`, gzipped or not. Raises UserError that says where it looked."""
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
    cache: str | Path,
    binning: Binning,
    validation: float,
    seed: int,
    classes: tuple[str, ...] = DIGITS,
) -> Data:
    """`Data` of `images`, recorded once by `camera` into N-MNIST files below `cache`; `source` names the images."""
    validation_share(validation)
    key = digest(version=VERSION, source=source, camera=asdict(camera))

    def record(directory: Path) -> None:
        film(camera, dict(zip(("Train", "Test"), images(), strict=True)), directory, name)

    directory = prepared_once(Path(cache).expanduser() / name / f"recordings-{key}", record)
    return load(
        name, Folder(directory / "Train"), Folder(directory / "Test"), key, cache, binning, validation, seed, classes
    )


def film(camera: Camera, images: dict[str, Images], directory: Path, name: str) -> None:
    """Record `images` of each split into `directory/<split>/<label>/<number>.bin`, numbered from 1 as N-MNIST is."""
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

    with threadpool_limits(1):  # a thread a core is at work already; more of BLAS's own would wait for one another
        for _ in progress(in_order(shoot, chunks), f"{name}: recording", sum(len(y) for _, y in images.values()), int):
            pass
