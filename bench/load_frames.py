"""Time loading one epoch of N-MNIST frames: snnexp's memory map, and SpikingJelly's NMNIST through a DataLoader.

    python bench/load_frames.py --data DIR     # DIR/nmnist holds Train and Test

Both deliver the same recordings, in batches of 64 in random order, as float tensors [64, T, 2, 34, 34], from files that
are prepared and in the page cache. First, the frames of both are checked to be equal. The sides take turns. Reported
are the fastest epoch, which other work on the machine disturbed least, and the median. SpikingJelly rejects partial
datasets, so its raw files are made here with its own `create_raw_from_extracted`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from snnexp.dataset.nmnist import nmnist

BATCH = 64


def seconds(epoch: Iterable[tuple[Tensor, Tensor]]) -> float:
    start = time.perf_counter()
    for x, _ in epoch:
        x.float()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds nmnist/Train and nmnist/Test")
    parser.add_argument("--timesteps", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the last DataLoader")
    args = parser.parse_args()
    torch.set_num_threads(1)  # batches are short: on a busy machine, several threads would wait for each other

    from spikingjelly.datasets.n_mnist import NMNIST

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        data = nmnist(args.data / "nmnist", Path(folder) / "cache", args.timesteps)
        prepared = time.perf_counter() - start

        start = time.perf_counter()
        (Path(folder) / "peer/events_np").mkdir(parents=True)
        NMNIST.create_raw_from_extracted(args.data / "nmnist", Path(folder) / "peer/events_np")
        peer = NMNIST(
            str(Path(folder) / "peer"), train=True, data_type="frame", frames_number=args.timesteps, split_by="number"
        )
        peer_prepared = time.perf_counter() - start

        n = len(data.train) + len(data.val)
        assert len(peer) == n
        theirs = sum(torch.as_tensor(peer[k][0]).double() for k in range(n))
        assert torch.equal(theirs, data.train.x[:n].sum(0).double()), "the two do not hold the same frames"

        everything = type(data.train)(data.train.x, data.train.y, torch.arange(n))
        rows = [("snnexp, memory map", prepared, lambda: everything.batches(BATCH, torch.randperm(n)))]
        for workers in (0, args.workers):
            loader = DataLoader(peer, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
            rows.append((f"SpikingJelly, {workers} workers", peer_prepared, loader.__iter__))

        took: list[list[float]] = [[] for _ in rows]
        for _ in range(args.epochs + 1):
            for times, (_, _, epoch) in zip(took, rows, strict=True):
                times.append(seconds(epoch()))
        best, median = ([pick(times[1:]) for times in took] for pick in (min, statistics.median))
        print(f"{n} recordings, T = {args.timesteps}, one thread; {args.epochs} epochs after a first")
        print(f"{'':26}{'prepare s':>10}{'fastest ms':>12}{'snnexp is':>12}{'median ms':>12}{'snnexp is':>12}")
        for k, (name, preparation, _) in enumerate(rows):
            print(
                f"{name:26}{preparation:10.2f}{1000 * best[k]:12.1f}{best[k] / best[0]:11.1f}x"
                f"{1000 * median[k]:12.1f}{median[k] / median[0]:11.1f}x"
            )


if __name__ == "__main__":
    main()
