"""scikit-learn's bundled handwritten digits (Alpaydin and Kaynak 1998): 1,797 images of 8 x 8, no download."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from snnexp.dataset.augment import Augment
from snnexp.dataset.base import Data, validation_share
from snnexp.dataset.images import Sums

CLASSES = tuple("0123456789")


class Images(NamedTuple):
    """Images [n, H, W], bright on black, and labels int64 [n]."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]


def read_digits() -> tuple[Images, Images]:
    """Return (train 1,437, test 360), uint8 [n, 8, 8] in 0..16. The split is fixed; 36 of each digit are for test."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = x.reshape(-1, 8, 8).astype(np.uint8)
    draw = np.random.default_rng(0)
    test = np.sort(np.concatenate([draw.permutation(np.flatnonzero(y == digit))[:36] for digit in range(10)]))
    train = np.setdiff1d(np.arange(len(y)), test)
    return Images(images[train], y[train]), Images(images[test], y[test])


def digits(validation: float = 0.1, seed: int = 0, augment: Augment | None = None) -> Data:
    """Load the digits with x uint8 [n, 1, 8, 8]; `seed` draws the share `validation` of training images to validate on.

    Raises InvalidValue for a share outside (0, 1).
    """
    validation_share(validation)
    train, test = read_digits()
    levels = np.round(np.arange(17) * (255 / 16)).astype(np.uint8)
    x = torch.from_numpy(levels[np.concatenate([train.x, test.x])]).unsqueeze(1)
    y = torch.from_numpy(np.concatenate([train.y, test.y]))
    trained, settings = len(train.y), {"classes": CLASSES, "temporal": False, "augment": augment}
    moments = Sums().add(x[:trained].numpy()).moments()
    return Data.of("digits", x, y, trained, validation, seed, shape=(1, 8, 8), normalize=moments, **settings)
