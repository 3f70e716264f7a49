"""N-MNIST: MNIST's digits, recorded by an ATIS event camera that makes three saccades (Orchard et al. 2015)."""

import os
from pathlib import Path
from typing import Any

from snnexp.dataset.base import Data
from snnexp.dataset.recordings import Archive, Folder, RecordingOptions, load_recordings
from snnexp.errors import UserError, integer_or_none

PAGE = "https://www.garrickorchard.com/datasets/n-mnist"


def nmnist(
    root: str | Path,
    cache: str | Path,
    timesteps: int,
    train_samples: int | None = None,
    test_samples: int | None = None,
    **options: Any,
) -> Data:
    """Load the real recordings below `root`: `Train.zip` and `Test.zip` as downloaded, or folders `Train` and `Test`.

    They may be incomplete; `train_samples` and `test_samples` use only that many, the first. Nothing is written to
    `root`. For the other arguments and the result see `RecordingOptions` and `load_recordings`. Raises UserError that
    names the folder and the download page if there is nothing to read.
    """
    chosen = RecordingOptions(cache, timesteps, **options)
    train = _source(Path(root).expanduser(), "Train", integer_or_none("train_samples", train_samples, at_least=2))
    test = _source(Path(root).expanduser(), "Test", integer_or_none("test_samples", test_samples, at_least=1))
    return load_recordings("nmnist", train, test, [train.identity(), test.identity()], chosen)


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
