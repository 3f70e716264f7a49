"""The standard image datasets that torchvision fetches and reads: MNIST, FashionMNIST, CIFAR-10, CIFAR-100."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from snnexp.dataset.base import Data
from snnexp.dataset.images import ImageOptions, Part, files, load_images, of_array
from snnexp.dataset.saccade import CLOTHES, IDX_BYTES, fetch, idx_files, read_images
from snnexp.errors import UserError

CIFAR_BYTES = 1 << 28  # of a file; the largest, of CIFAR-100, has 155 million
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)


def cifar10(root: str | Path, download: bool = False, **options: Any) -> Data:
    """Load CIFAR-10 (Krizhevsky 2009), 50,000 + 10,000 of 3 x 32 x 32, 10 classes, as torchvision stores it in `root`.

    `download`: let torchvision fetch the files if they are missing. Other arguments: `ImageOptions`. Raises UserError
    that names the folder if there are no images, or the reason why they cannot be fetched.
    """
    return _cifar(datasets.CIFAR10, CIFAR10, root, download, ImageOptions(**options))


def cifar100(root: str | Path, download: bool = False, **options: Any) -> Data:
    """Load CIFAR-100, with 100 classes, otherwise like `cifar10`."""
    return _cifar(datasets.CIFAR100, CIFAR100, root, download, ImageOptions(**options))


def mnist(root: str | Path, download: bool = False, **options: Any) -> Data:
    """Load MNIST (LeCun et al. 1998), 60,000 + 10,000 of 1 x 28 x 28, gzipped or not; otherwise like `cifar10`."""
    return _mnist("MNIST", tuple("0123456789"), root, download, ImageOptions(**options))


def fashion_mnist(root: str | Path, download: bool = False, **options: Any) -> Data:
    """Load FashionMNIST (Xiao et al. 2017), otherwise like `mnist`."""
    return _mnist("FashionMNIST", CLOTHES, root, download, ImageOptions(**options))


def _cifar(kind: Any, classes: str, root: str | Path, download: bool, options: ImageOptions) -> Data:
    root = Path(root).expanduser().absolute()
    folder = root / kind.base_folder
    paths = [folder / name for name, _ in (*kind.train_list, *kind.test_list)]
    if download and not all(path.exists() for path in paths):
        fetch(kind, root)
    for path in paths:
        if not path.exists():
            ways = f"{kind.base_folder}, or set dataset.download=true to let torchvision fetch it"
            raise UserError(f"no {path.name} in {folder}: point dataset.root at the folder that holds {ways}")
    meta = folder / kind.meta["filename"]

    def parts() -> tuple[Part, Part]:
        try:  # torchvision compares checksums before it unpickles anything
            train, test = (kind(str(root), train=part) for part in (True, False))
        except (RuntimeError, OSError) as error:
            advice = "remove it and set dataset.download=true"
            raise UserError(f"{folder} does not hold the published files ({error}): {advice}") from error
        train, test = (of_array(np.ascontiguousarray(p.data.transpose(0, 3, 1, 2)), p.targets) for p in (train, test))
        return train, test

    name = kind.__name__.lower()
    return load_images(name, parts, [name, files([*paths, meta], CIFAR_BYTES)], classes.split(), options)


def _mnist(name: str, classes: tuple[str, ...], root: str | Path, download: bool, options: ImageOptions) -> Data:
    root = Path(root).expanduser().absolute()
    raw = root / name / "raw"
    if download and not (raw.exists() and any(os.scandir(raw))):
        fetch(getattr(datasets, name), root)
    paths = idx_files(raw)

    def parts() -> tuple[Part, Part]:
        train, test = (read_images(paths[k : k + 2], len(classes)) for k in (0, 2))
        return of_array(train.x[:, None], train.y.tolist()), of_array(test.x[:, None], test.y.tolist())

    return load_images(name.lower(), parts, files(paths, IDX_BYTES), classes, options)
