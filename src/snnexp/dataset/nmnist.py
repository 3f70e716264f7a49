"""N-MNIST: MNIST's digits, recorded by an ATIS event camera that makes three saccades (Orchard et al. 2015)."""

from __future__ import annotations

import os
from pathlib import Path

from snnexp.dataset.base import Data
from snnexp.dataset.recordings import Archive, Binning, Folder, load
from snnexp.errors import UserError, integer

PAGE = "https://www.garrickorchard.com/datasets/n-mnist"


def nmnist(
    root: str | Path,
    cache: str | Path,
    timesteps: int,
    bins: str = "count",
    values: str = "count",
    duration: int = 315_000,
    validation: float = 0.1,
    seed: int = 0,
    train_samples: int | None = None,
    test_samples: int | None = None,
) -> Data:
    """Load the real recordings below `root`: `Train.zip` and `Test.zip` as downloaded, or folders `Train` and `Test`.

    They may be incomplete; `train_samples` and `test_samples` use only that many, the first. Nothing is written to
    `root`. For the other arguments and the result see `recordings.load` and `frames.bin_of_event`. Raises UserError
    that names the folder and the download page if there is nothing to read.
    """
    binning = Binning(timesteps, bins, values, duration)
    train = _source(Path(root).expanduser(), "Train", limit("train_samples", train_samples, 2))
    test = _source(Path(root).expanduser(), "Test", limit("test_samples", test_samples, 1))
    identity = [train.identity(), test.identity()]
    return load("nmnist", train, test, identity, cache, binning, validation, seed)


def limit(name: str, value: int | None, at_least: int) -> int | None:
    """Return `value` if it is None or an integer >= `at_least`, else raise InvalidValue."""
    return None if value is None else integer(name, value, at_least=at_least)


def _source(root: Path, split: str, limit: int | None) -> Archive | Folder:
    # archives first: they are complete or rejected, while a folder may come from an interrupted extraction
    for archive in (root / f"{split}.zip", root / "download" / f"{split}.zip"):
        if os.path.lexists(archive) and (source := Archive(archive, limit)).labels:
            return source
    for folder in (root / split, root / "extract" / split):
        if (found := Folder(folder, limit)).labels:
            return found
    raise UserError(
        f"no N-MNIST {split} recordings in {root.resolve()}: looked for {split}.zip and {split}/<digit>/<number>.bin. "
        f"Download Train.zip and Test.zip from {PAGE} into that folder (extracted or not), "
        "or point dataset.root at the folder that holds them."
    )
