"""Compare input pipelines for CIFAR-10 training in one run: snnexp's batches and torchvision's usual DataLoader.

    python bench/image_pipeline.py [--rounds 5] [--workers 2]

Both sides deliver shuffled batches of 128 from the same 50,000 uint8 images 3 x 32 x 32, cropped after padding by 4,
flipped, and normalised to float32. The images are random, because the work does not depend on their content. The peer
is torchvision's CIFAR10 with RandomCrop, RandomHorizontalFlip, ToTensor and Normalize in a DataLoader with worker
processes, which are started before the clock. The sides take turns. snnexp works in one thread of the main process.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from snnexp.dataset.augment import Augment
from snnexp.dataset.base import Split
from snnexp.timefold import Normalize

BATCH, MEAN, STD = 128, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def ours(x: Tensor, y: Tensor, epoch: int) -> float:
    """Return the seconds that an epoch takes."""
    split, augment, normalize = Split(x, y, torch.arange(len(x))), Augment(crop=4, flip=True), Normalize(MEAN, STD)
    start = time.perf_counter()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
    for step, (images, _) in enumerate(split.batches(BATCH, order)):
        batch = normalize(augment(images, epoch * 1000 + step))
    seconds = time.perf_counter() - start
    assert batch.dtype == torch.float32
    return seconds


def loader(x: Tensor, y: Tensor, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    peer = datasets.CIFAR10.__new__(datasets.CIFAR10)  # torchvision's own __getitem__, without its files
    peer.data, peer.targets = np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy()), y.tolist()
    peer.target_transform = None
    peer.transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(peer, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def theirs(batches: DataLoader[tuple[Tensor, Tensor]], limit: int) -> float:
    """Return the seconds that an epoch takes, extrapolated from `limit` batches after the first few."""
    iterator, warm = iter(batches), 8
    for _ in range(warm):
        next(iterator)
    start, seen = time.perf_counter(), 0
    for images, _ in iterator:
        seen += len(images)
        if seen >= limit * BATCH:
            break
    return (time.perf_counter() - start) / seen * len(batches.dataset)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=380, help="batches of the peer that are timed a round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
    y = torch.randint(0, 10, (50_000,))
    peer = loader(x, y, args.workers)
    times: dict[str, list[float]] = {"snnexp, 1 thread": [], f"torchvision, {args.workers} workers": []}
    mine, other = times.values()
    for epoch in range(args.rounds):
        mine.append(ours(x, y, epoch))
        other.append(theirs(peer, args.batches))
    print(f"{'':24}{'images/s, median':>18}{'best':>12}")
    for name, seconds in times.items():
        print(f"{name:24}{len(x) / statistics.median(seconds):18,.0f}{len(x) / min(seconds):12,.0f}")
    ratio = statistics.median(other) / statistics.median(mine)
    print(f"ratio of medians {ratio:.1f}, of best {min(other) / min(mine):.1f}")


if __name__ == "__main__":
    main()
