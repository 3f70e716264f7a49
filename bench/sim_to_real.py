"""Train a network on simulated recordings alone and test it on real N-MNIST recordings.

    python bench/sim_to_real.py --data DIR     # DIR/mnist as torchvision stores it, DIR/nmnist with Train and Test

The real recordings show MNIST train images 1..1000 and test images 1..100. The simulated ones show MNIST train images
from 1001 on, so neither the 100 nor all 1,100 real recordings show an image that was trained on. For comparison, the
same network is trained on the 1,000 real recordings. Two layers, 2312-512-10, LIF (tau 2, soft reset), ATan, T frames,
Adam, MSE between firing rate and one-hot label, batch 64. The last epoch is tested; nothing is selected.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch
from spikingjelly.activation_based import functional, surrogate
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from snnexp.dataset.nmnist import nmnist
from snnexp.dataset.saccade import mnist_saccade

TRAIN = 1000  # real training recordings; they show MNIST train images 1..1000
BATCH = 64


def rate(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """Return the firing rate [n, 10] for frames [n, T, 2, 34, 34]."""
    s = x.flatten(2).transpose(0, 1).float()
    for layer in layers:
        current = layer(s)
        s, _ = functional.lif_multi_step(
            current,
            torch.zeros_like(current[0]),
            2.0,
            decay_input=False,
            v_threshold=1.0,
            v_reset=None,
            surrogate_function=surrogate.ATan(),
        )[:2]
    return s.mean(0)


def train(x: Tensor, y: Tensor, rows: Tensor, epochs: int, learning_rate: float, seed: int) -> nn.ModuleList:
    torch.manual_seed(seed)
    layers = nn.ModuleList([nn.Linear(x[0, 0].numel(), 512), nn.Linear(512, 10)])
    optimizer = torch.optim.Adam(layers.parameters(), learning_rate)
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows))].split(BATCH):
            optimizer.zero_grad()
            mse_loss(rate(layers, x[batch]), one_hot(y[batch], 10).float()).backward()
            optimizer.step()
    return layers


@torch.no_grad()
def correct(layers: nn.ModuleList, x: Tensor, y: Tensor) -> Tensor:
    """Return for each recording whether it is classified correctly, bool [n]."""
    found = [rate(layers, part).argmax(1) for part in x.split(256)]
    return torch.cat(found) == y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds mnist and nmnist")
    parser.add_argument("--cache", type=Path, help="where recordings and frames are kept; default: a temporary folder")
    parser.add_argument("--simulated", type=int, default=10_000, help="recordings; at most 59,000")
    parser.add_argument("--epochs", type=int, default=5, help="over the simulated recordings")
    parser.add_argument("--real-epochs", type=int, default=20, help="over the real recordings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--timesteps", type=int, default=10)
    parser.add_argument("--bins", choices=("count", "time"), default="count")
    parser.add_argument("--values", choices=("count", "binary"), default="count")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)

    with tempfile.TemporaryDirectory() as folder:
        cache, frames = args.cache or Path(folder), (args.timesteps, args.bins, args.values)
        real = nmnist(args.data / "nmnist", cache, *frames)
        start = time.perf_counter()
        simulated = mnist_saccade(
            args.data / "mnist", cache, *frames, train_samples=TRAIN + args.simulated, test_samples=1
        )
        print(f"{TRAIN + args.simulated} simulated recordings ready in {time.perf_counter() - start:.0f} s")
        assert len(real.train) + len(real.val) == TRAIN

        sides = {
            f"{args.simulated:,} simulated": (
                simulated.train,
                torch.arange(TRAIN, TRAIN + args.simulated),
                args.epochs,
            ),
            f"{TRAIN:,} real": (real.train, torch.arange(TRAIN), args.real_epochs),
        }
        print(f"T = {args.timesteps}, frames by {args.bins}, values {args.values}, {args.seeds} seeds")
        print(f"{'trained on':20}{'epochs':>7}{'seed':>6}{'the 100 real test':>20}{'all 1,100 real':>17}", flush=True)
        for name, (split, rows, epochs) in sides.items():
            results = []
            for seed in range(args.seeds):
                right = correct(train(split.x, split.y, rows, epochs, args.lr, seed), real.test.x, real.test.y).float()
                results.append((right[TRAIN:].mean().item(), right.mean().item()))
                print(
                    f"{name:20}{epochs:7}{seed:6}{results[-1][0]:20.3f}" + seen(split is real.train, results[-1][1]),
                    flush=True,
                )
            mean, mean_all = (statistics.mean(column) for column in zip(*results, strict=True))
            print(f"{name:20}{epochs:7}{'mean':>6}{mean:20.3f}" + seen(split is real.train, mean_all), flush=True)


def seen(trained_on: bool, accuracy: float) -> str:
    return f"{'(trained on)':>17}" if trained_on else f"{accuracy:17.3f}"


if __name__ == "__main__":
    main()
