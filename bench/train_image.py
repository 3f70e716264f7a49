"""Compare the training speed of an image ANN in one run: snnexp's loop and a plain PyTorch loop, in turns.

    python bench/train_image.py [--model resnet20] [--neuron qcfs] [--rounds 3] [--steps 20] [--threads 1]

Both use the same network, batch size (128), SGD and cross-entropy. The plain loop receives normalised float images that
are ready in memory, while snnexp also shuffles, crops, flips and normalises bytes. The plain loop's QCFS is the formula
with a straight-through floor, differentiated by autograd. Times include everything: batch, forward, backward and
update.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from snnexp.build import build
from snnexp.config import conf_dir
from snnexp.dataset.augment import Augment
from snnexp.dataset.base import Data, Split
from snnexp.session import Session
from snnexp.training import Fit

BATCH = 128


class PlainQCFS(nn.Module):
    def __init__(self, L: int, lam: float) -> None:
        super().__init__()
        self.L, self.lam = L, nn.Parameter(torch.tensor(lam))

    def forward(self, z: Tensor) -> Tensor:
        u = (z / self.lam).clamp(0, 1) * self.L + 0.5
        return self.lam * (u + (u.floor() - u).detach()) / self.L


def config(args: argparse.Namespace, epochs: int) -> dict[str, Any]:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        overrides = [
            f"model={args.model}",
            f"neuron={args.neuron}",
            "loss=cross_entropy",
            "optimizer=sgd",
            "optimizer.lr=0.01",
            f"trainer.epochs={epochs}",
            f"trainer.batch_size={BATCH}",
            "trainer.accelerator=cpu",
            "tracking=none",
        ]
        return OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)  # type: ignore[return-value]


def ours(args: argparse.Namespace, x: Tensor, y: Tensor) -> float:
    """Return the images/s of the second epoch, from the end of its first step to the end of its last."""
    rows, few = torch.arange(len(x)), torch.arange(BATCH)
    data = Data(
        "random",
        Split(x, y, rows),
        Split(x, y, few),
        Split(x, y, few),
        shape=(3, 32, 32),
        classes=tuple("0123456789"),
        temporal=False,
        augment=Augment(crop=4, flip=True),
        normalize=((0.5,) * 3, (0.25,) * 3),
    )
    session = Session(config(args, 2), {})
    session.data = data
    times: list[float] = []
    Fit(
        session.trainer.fabric(),
        session.network(),
        data,
        session.loss,
        session.optimizer,
        session.scheduler,
        session.trainer,
        seed=0,
        folder=Path(tempfile.mkdtemp()),
        on_step=lambda p, _: times.append(time.perf_counter()),
        on_epoch=lambda _: None,
    ).run()
    second = times[args.steps :]
    return (len(second) - 1) * BATCH / (second[-1] - second[0])


def plain(args: argparse.Namespace, x: Tensor, y: Tensor) -> float:
    """Return the images/s of the second epoch, from the end of its first step to the end of its last."""
    settings = config(args, 1)
    torch.manual_seed(0)
    neuron = nn.ReLU if args.neuron == "relu" else lambda: PlainQCFS(4, 8.0)
    net = build("model", settings, shape=(3, 32, 32), classes=10, neuron=neuron)
    images = (x.float() / 255 - 0.5) / 0.25
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    times = []
    for _ in range(2):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), y[rows]).backward()
            optimizer.step()
            times.append(time.perf_counter())
    second = times[args.steps :]
    return (len(second) - 1) * BATCH / (second[-1] - second[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--neuron", default="qcfs", choices=["qcfs", "relu"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="batches an epoch; two epochs a round")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x = torch.randint(0, 256, (args.steps * BATCH, 3, 32, 32), dtype=torch.uint8)
    y = torch.randint(0, 10, (len(x),))
    sides: dict[str, list[float]] = {"snnexp": [], "plain PyTorch": []}
    for _ in range(args.rounds):
        sides["snnexp"].append(ours(args, x, y))
        sides["plain PyTorch"].append(plain(args, x, y))
    print(f"{args.model}, {args.neuron}, {args.threads} thread(s): images/s, median and best of {args.rounds}")
    for name, rates in sides.items():
        print(f"{name:16}{statistics.median(rates):10.0f}{max(rates):10.0f}")
    print(
        f"ratio of medians {statistics.median(sides['snnexp']) / statistics.median(sides['plain PyTorch']):.2f}, "
        f"of best {max(sides['snnexp']) / max(sides['plain PyTorch']):.2f}"
    )


if __name__ == "__main__":
    main()
