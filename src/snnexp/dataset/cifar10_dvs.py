"""CIFAR10-DVS: 10,000 CIFAR-10 images that move on a screen, recorded by a DVS128 (H. Li et al., Frontiers in
Neuroscience 2017); and recordings of the same kind by the simulated camera."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn
from torch import Tensor

from snnexp.dataset import aedat, dvs128, standard
from snnexp.dataset import digits as bundled
from snnexp.dataset.augment import Augment
from snnexp.dataset.base import Data
from snnexp.dataset.events import Events
from snnexp.dataset.foreign import RECORDING_BYTES, Zip, by_number, listed, read_bytes, shown
from snnexp.dataset.image_folder import image_folder
from snnexp.dataset.images import files
from snnexp.dataset.prepare import digest, in_order, prepared_once, progress, ranges
from snnexp.dataset.recordings import RecordingOptions, load_recordings
from snnexp.errors import UserError, boolean, choice, integer_or_none, number, require

PAGE = "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671/2"
CLASSES = tuple(standard.CIFAR10.split())
SOURCES = ("digits", "cifar10", "image_folder")
NUMBERED = re.compile(r"(?P<number>\d*)\.aedat\Z")
CHUNK = 8  # images simulated at a time, so that arrays stay in the cache


@dataclass(frozen=True)
class DVSOptions(RecordingOptions):
    """DVSOptions of both datasets; see conf/dataset/cifar10_dvs.yaml. Raises InvalidValue.

    `size`: frames are size x size cells of 128/size x 128/size pixels. `average`: show the network the mean of the
    frames as one image. `samples`: use only that many recordings of each class, the first ones. `test`: share of each
    class's recordings used for test, drawn once, whatever the `seed`; of the others, a share `validation` validates.
    `crop`, `flip`: augment training recordings, all frames alike (`Augment`). Others: `RecordingOptions`.
    """

    size: int = aedat.SIDE
    average: bool = False
    duration: int = 1_200_000
    samples: int | None = None
    test: float = 0.1
    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.size, int) and 0 < self.size <= aedat.SIDE and aedat.SIDE % self.size == 0
        require(whole, "size", self.size, "a divisor of 128, so that all cells have one size: 128, 64, 32, 16, ...")
        boolean("average", self.average)
        integer_or_none("samples", self.samples, at_least=3)
        number("test", self.test, "a share between 0 and 1, both excluded", above=0, below=1)
        Augment(crop=self.crop, flip=self.flip)


def cifar10_dvs(root: str | Path, classes: Sequence[str] | None = None, **options: Any) -> Data:
    """Load the real recordings below `root`: per class, an archive `<class>.zip` as downloaded or a folder `<class>`.

    `classes`: only these (None: all ten). Classes may be incomplete. Nothing is written to `root`. For the other
    arguments and the result see `DVSOptions` and `load_recordings`. Raises UserError that names the folder and the
    download page if there is nothing to read, EventFileError for a file that is not a recording of a DVS128, and
    InvalidValue.
    """
    chosen, known = DVSOptions(**options), tuple(CLASSES if classes is None else classes)
    require(len(known) > 1 and set(known) <= set(CLASSES), "classes", list(known), f"null, or some of {list(CLASSES)}")
    return _loaded("cifar10_dvs", Path(root).expanduser(), known, chosen)


def cifar10_saccade(
    source: str, root: str | Path, camera: dvs128.DVS128 | None = None, download: bool = False, **options: Any
) -> Data:
    """Record moving images once with the simulated `camera`, into AEDAT files below `cache`, and load those.

    `source`: `digits`, scikit-learn's (`root` is ignored); `cifar10`, torchvision's below `root`, which `download` lets
    it fetch; `image_folder`, any images in `root/train/<class>/`. The first `samples` images of each class are recorded
    (of cifar10 and image_folder, training images), as grey images of 32 x 32. Other arguments: `cifar10_dvs`. Raises
    UserError and InvalidValue.
    """
    chosen, camera = DVSOptions(**options), camera or dvs128.DVS128()
    x, y, classes = _images(choice("source", source, SOURCES), root, download, chosen)
    seen = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    key = digest(version=dvs128.VERSION, images=[source, seen, list(classes)], camera=asdict(camera))
    folder = Path(chosen.cache).expanduser() / "cifar10_saccade" / f"recordings-{key}"
    directory = prepared_once(folder, lambda to: film(camera, x, y, classes, to))
    return _loaded("cifar10_saccade", directory, classes, chosen)


@dataclass
class Recordings:
    """Recordings in files or archive members, in cells of `cell` x `cell` pixels, with time from the first event."""

    cell: int
    places: list[tuple[Path | Zip, str]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def read(self, k: int) -> Events:
        """Return the events of recording `k`. Raises EventFileError."""
        place, member = self.places[k]
        name = f"{shown(place.path)}:{shown(member)}" if isinstance(place, Zip) else shown(place)
        t, x, y, p = aedat.decode(place.read(member) if isinstance(place, Zip) else read_bytes(place), name)
        if not len(t):
            raise UserError(f"{name}: the file holds no events")
        return Events(t - t[0], x // self.cell, y // self.cell, p)


@dataclass(frozen=True)
class OfRecordings:
    """Apply an `Augment` to all frames of a recording alike."""

    augment: Augment

    def __call__(self, x: Tensor, seed: int) -> Tensor:
        """Augment x uint8 [N, T, C, H, W]."""
        return self.augment(x.flatten(1, 2), seed).view_as(x)


def film(
    camera: dvs128.DVS128, x: NDArray[np.uint8], y: NDArray[np.int64], classes: Sequence[str], directory: Path
) -> None:
    """Record images x [n, 32, 32] with labels y as `directory/<class>/cifar10_<class>_<k>.aedat`, k from 0 by class."""
    for name in classes:
        (directory / name).mkdir()
    place = [int((y[:k] == label).sum()) for k, label in enumerate(y)]

    def shoot(rows: range) -> int:
        for k, recording in zip(rows, camera.record(x[rows.start : rows.stop], rows), strict=True):
            name = classes[y[k]]
            aedat.write(directory / name / f"cifar10_{name}_{place[k]}.aedat", recording)
        return len(rows)

    with threadpool_limits(1):  # `in_order` already runs one thread per core
        for _ in progress(in_order(shoot, ranges(len(y), CHUNK)), "cifar10_saccade: recording", len(y), int):
            pass


def _images(
    source: str, root: str | Path, download: bool, options: DVSOptions
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Return (grey images [n, 32, 32], labels [n], classes) of the first `samples` images of each class."""
    if source == "digits":
        train, test = bundled.read_digits()
        small, labels = (torch.from_numpy(np.concatenate(parts)) for parts in ((train.x, test.x), (train.y, test.y)))
        large = torch.nn.functional.interpolate(small[:, None].float() / 16, size=(24, 24), mode="bicubic")
        grey = torch.nn.functional.pad(large[:, 0].clamp(0, 1), 4 * [4]) * 255
        classes = bundled.CLASSES
    else:
        if source == "cifar10":
            data = standard.cifar10(root, download, cache=options.cache)
        else:
            data = image_folder(root, size=32, cache=options.cache)
        rows = torch.cat([data.train.index, data.val.index]).sort().values
        labels, classes = data.train.y[rows], data.classes
        kept = _first(labels, len(classes), options.samples)
        rows, labels = rows[kept], labels[kept]
        grey = (data.train.x[rows].float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)  # ITU-R BT.601
    kept = _first(labels, len(classes), options.samples)
    return grey[kept].round().byte().numpy(), labels[kept].numpy(), tuple(classes)


def _first(labels: Tensor, classes: int, samples: int | None) -> Tensor:
    """Return the rows of the first `samples` of each class (None: all), in order."""
    return torch.cat([(labels == label).nonzero().flatten()[:samples] for label in range(classes)]).sort().values


def _loaded(name: str, root: Path, classes: tuple[str, ...], options: DVSOptions) -> Data:
    """Return `Data` of the recordings below `root`, split class by class."""
    train, test = (Recordings(aedat.SIDE // options.size) for _ in range(2))
    identity: list[object] = [options.size, options.test]
    for label, wanted in enumerate(classes):
        found, seen = _found(root, wanted, options.samples)
        identity.append(seen)
        rows = np.random.default_rng((0, label)).permutation(len(found))
        cut = max(1, round(options.test * len(found)))
        if cut >= len(found):
            share = f"with dataset.test={options.test} leave none to train on"
            raise UserError(f"{len(found)} recordings of the class {wanted} {share}")
        for part, kept in ((test, rows[:cut]), (train, rows[cut:])):
            part.places += [found[k] for k in np.sort(kept)]
            part.labels += [label] * len(kept)
    data = load_recordings(name, train, test, identity, options, classes, options.size)
    augment = OfRecordings(Augment(crop=options.crop, flip=options.flip)) if options.crop or options.flip else None
    return replace(data, augment=augment, temporal=not options.average, averaged=options.average)


def _found(root: Path, name: str, samples: int | None) -> tuple[list[tuple[Path | Zip, str]], object]:
    """Return (first `samples` recordings of class `name` by number, an identity that changes when their files do)."""
    # archives first: they are complete or rejected, while a folder may come from an interrupted extraction
    for path in (root / f"{name}.zip", root / "download" / f"{name}.zip"):
        if os.path.lexists(path):
            archive = Zip(path, ".aedat")
            inside = by_number(archive.names, NUMBERED, path)[:samples]
            if inside:
                return [(archive, match.string) for match in inside], [*archive.identity(), len(inside)]
    for folder in (root / name, root / "extract" / name):
        paths = [folder / match.string for match in by_number(listed(folder), NUMBERED, folder)][:samples]
        if paths:
            return [(path, "") for path in paths], files(paths, RECORDING_BYTES)
        if any(folder.glob("*.aedat4")):
            raise UserError(f"{folder} holds AEDAT 4 files: only the AEDAT 2.0 files of {PAGE} can be read")
    raise UserError(
        f"no CIFAR10-DVS recordings of the class {name} in {root.resolve()}: looked for {name}.zip and "
        f"{name}/*_<number>.aedat. Download airplane.zip ... truck.zip from {PAGE} into that folder (extracted or "
        "not), point dataset.root at the folder that holds them, or name the classes that you have: "
        "'dataset.classes=[airplane,...]'. dataset=cifar10_saccade needs no download"
    )
