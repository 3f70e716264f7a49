"""Compare the accuracy of the default two-layer SNN on real N-MNIST recordings with a plain SpikingJelly loop.

    python bench/nmnist_accuracy.py --data DIR [--seeds 5] [--folds 5]

DIR is an N-MNIST folder, whole or in part. Prints two tables: the official split over several seeds, and a
cross-validation over all recordings, in which both sides train and test on the same recordings (paired). snnexp holds
out a tenth of the training recordings to choose the epoch. The plain loop takes its last epoch; it trains on all of
them, or with `--same-rows` on the same nine tenths. Both sides use the same network (2312-512-10, LIF, ATan), frames (T
= 10), batch 64, Adam 1e-3, MSE on the rate, and 15 epochs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn import functional as F

from snnexp.config import conf_dir
from snnexp.dataset.base import Data, split_train
from snnexp.evaluate import evaluate
from snnexp.session import Session
from snnexp.training import Fit, load_checkpoint

CPU = torch.device("cpu")


def session(options: argparse.Namespace, seed: int) -> Session:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        overrides = ["dataset=nmnist", f"dataset.root={Path(options.data).absolute()}", f"seed={seed}", "tracking=none"]
        config = OmegaConf.to_container(
            compose("config", overrides=[*overrides, "trainer.accelerator=cpu"]), resolve=True
        )
    return Session(config, {})


def ours(options: argparse.Namespace, seed: int, data: Data) -> float:
    """Return the test accuracy of the epoch that is best on the validation split."""
    run, folder = session(options, seed), Path(tempfile.mkdtemp())
    run.data = data
    net = run.network()
    Fit(
        run.trainer.fabric(),
        net,
        data,
        run.loss,
        run.optimizer,
        run.scheduler,
        run.trainer,
        seed=seed,
        folder=folder,
        on_step=lambda *_: None,
        on_epoch=lambda _: None,
    ).run()
    net.load_state_dict(load_checkpoint(folder / "best.pt")["model"])
    return evaluate(net, data.test, run.loss, 256, CPU, len(data.classes)).accuracy


def plain(seed: int, x: Tensor, y: Tensor, train: Tensor, test: Tensor) -> float:
    """Return the test accuracy of a plain SpikingJelly loop after its last epoch, trained on the rows `train`."""
    torch.manual_seed(seed)

    def lif() -> nn.Module:
        return neuron.LIFNode(2.0, decay_input=False, v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m")

    net = nn.Sequential(
        layer.Flatten(step_mode="m"),
        layer.Linear(2312, 512, step_mode="m"),
        lif(),
        layer.Linear(512, 10, step_mode="m"),
        lif(),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def rate(rows: Tensor) -> Tensor:
        out = net(x[rows].float().transpose(0, 1)).mean(0)
        functional.reset_net(net)
        return out

    for _ in range(15):
        for rows in train[torch.randperm(len(train))].split(64):
            loss = F.mse_loss(rate(rows), F.one_hot(y[rows], 10).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = [(rate(rows).argmax(1) == y[rows]).sum().item() for rows in test.split(256)]
    return sum(right) / len(test)


def folds(data: Data, k: int) -> list[Data]:
    """Split all recordings of `data` into k folds: one part to test, the rest to train and validate."""
    rows = torch.cat([data.train.index, data.val.index, data.test.index])
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    made = []
    for part in range(k):
        test = rows[part::k]
        rest = rows[~torch.isin(rows, test)]
        kept, held_out = split_train(len(rest), 0.1, seed=part)
        split = {"train": rest[kept], "val": rest[held_out], "test": test}
        made.append(replace(data, **{name: replace(data.train, index=index) for name, index in split.items()}))
    return made


def row(name: str, values: list[float]) -> str:
    spread = statistics.stdev(values)
    return f"{name:14} {statistics.mean(values):.4f} ± {spread:.4f}   " + " ".join(f"{v:.3f}" for v in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="an N-MNIST folder")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--same-rows", action="store_true", help="the plain loop, too, leaves out the validation rows")
    options = parser.parse_args()

    a, b = [], []
    for seed in range(options.seeds):
        data = session(options, seed).data
        everything = torch.cat([data.train.index, data.val.index])
        a.append(ours(options, seed, data))
        rows = data.train.index if options.same_rows else everything
        b.append(plain(seed, data.train.x, data.train.y, rows, data.test.index))
    print(f"official split: {len(everything)} to train, {len(data.test)} to test, {options.seeds} seeds (mean ± sd)")
    print(row("snnexp", a), row("SpikingJelly", b), sep="\n", flush=True)

    a, b = [], []
    for part, data in enumerate(folds(session(options, 0).data, options.folds)):
        a.append(ours(options, part, data))
        rest = data.train.index if options.same_rows else torch.cat([data.train.index, data.val.index])
        b.append(plain(part, data.train.x, data.train.y, rest, data.test.index))
    total = sum(len(d.test) for d in folds(session(options, 0).data, options.folds))
    print(f"{options.folds}-fold cross-validation over {total} recordings")
    print(
        row("snnexp", a),
        row("SpikingJelly", b),
        row("difference", [p - q for p, q in zip(a, b, strict=True)]),
        sep="\n",
    )


if __name__ == "__main__":
    main()
