"""Compare the training speed of the two-layer SNN in one run: snnexp and a plain SpikingJelly loop, in turns.

    python bench/train_two_layer.py --data DIR [--rounds 5] [--epochs 3] [--threads 2]

DIR is an N-MNIST folder (`Train/<digit>/*.bin`, `Test/...`); without it, the embedded recordings are used. Both sides
use the same network (2312-512-10, LIF, ATan), recordings, batch size (64), T (10), Adam, MSE on the rate, and thread
count. Each side is a fresh process, and the sides take turns. Times include everything: loading, forward, backward and
update. The bound is the speed that the two dense float32 products of the first layer (output and weight gradient) alone
would allow, measured on the same processor, with the same threads, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

T, BATCH, HIDDEN, INPUTS = 10, 64, 512, 2 * 34 * 34


def composed(options: argparse.Namespace) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from snnexp.config import conf_dir

    real = ["dataset=nmnist", f"dataset.root={options.data}"] if options.data else []
    settings = [f"timesteps={T}", f"trainer.batch_size={BATCH}", f"model.hidden={HIDDEN}", "dataset.validation=0.01"]
    where = [f"cache_dir={options.cache}", f"trainer.epochs={options.epochs + 1}", "trainer.accelerator=cpu"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = compose("config", overrides=[*real, *settings, *where, "tracking=none"])
    return OmegaConf.to_container(cfg, resolve=True)


def snnexp_side(options: argparse.Namespace) -> float:
    """Return the samples/s of the project's own loop, data path and settings, in the epochs after the first."""
    from snnexp.session import Session
    from snnexp.training import Fit

    config = composed(options)
    folder = Path(tempfile.mkdtemp(dir=options.cache))
    session = Session(config, {})
    data, times = session.data, []

    def on_step(progress: object, steps: int) -> None:
        if progress.step == 1:
            times.append([time.perf_counter(), 0.0])
        times[-1][1] = time.perf_counter()

    Fit(
        session.trainer.fabric(),
        session.network(),
        data,
        session.loss,
        session.optimizer,
        session.scheduler,
        session.trainer,
        seed=0,
        folder=folder,
        on_step=on_step,
        on_epoch=lambda progress: None,
    ).run()
    shutil.rmtree(folder)
    counted = len(data.train) - BATCH  # samples from the end of the first step to the end of the last
    return statistics.median(counted / (end - begin) for begin, end in times[1:])


def spikingjelly_side(options: argparse.Namespace) -> float:
    """Return the samples/s of a loop like that of SpikingJelly's tutorial: its dataset, DataLoader and modules."""
    import numpy as np
    import torch
    from spikingjelly.activation_based import functional, layer, neuron, surrogate
    from torch import nn
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, Dataset

    class Frames(Dataset):
        """SpikingJelly's frame files (one npz per recording), read as its NMNIST class reads them."""

        def __init__(self, root: Path) -> None:
            self.files = sorted(root.glob("*/*.npz"))

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            return np.load(self.files[i])["frames"].astype(np.float32), int(self.files[i].parent.name)

    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Flatten(step_mode="m"),
        layer.Linear(INPUTS, HIDDEN, step_mode="m"),
        neuron.LIFNode(tau=2.0, decay_input=False, v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m"),
        layer.Linear(HIDDEN, 10, step_mode="m"),
        neuron.LIFNode(tau=2.0, decay_input=False, v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m"),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(Frames(Path(options.cache) / "spikingjelly"), batch_size=BATCH, shuffle=True)
    rates = []
    for epoch in range(options.epochs + 1):
        net.train()
        begin = counted = correct = 0
        for step, (frame, label) in enumerate(loader):
            optimizer.zero_grad()
            frame = frame.transpose(0, 1)  # [N, T, C, H, W] -> [T, N, C, H, W]
            rate = net(frame).mean(0)
            loss = F.mse_loss(rate, F.one_hot(label, 10).float())
            loss.backward()
            optimizer.step()
            functional.reset_net(net)
            correct += (rate.argmax(1) == label).float().sum().item()
            if step == 0:
                begin = time.perf_counter()
            else:
                counted += len(label)
        if epoch:
            rates.append(counted / (time.perf_counter() - begin))
    return statistics.median(rates)


def bound_side(options: argparse.Namespace) -> float:
    """Return the samples/s if a training step consisted only of the first layer's two matrix products."""
    import torch

    x, w, g = torch.rand(T * BATCH, INPUTS), torch.rand(HIDDEN, INPUTS), torch.rand(T * BATCH, HIDDEN)
    times = []
    for _ in range(60):
        begin = time.perf_counter()
        x @ w.T
        g.T @ x
        times.append(time.perf_counter() - begin)
    return BATCH / statistics.median(times)


SIDES = {"snnexp": snnexp_side, "spikingjelly": spikingjelly_side, "bound": bound_side}


def write_frames(options: argparse.Namespace) -> None:
    """Write the same recordings and frames as SpikingJelly's npz files, so that both sides see equal numbers."""
    import numpy as np

    from snnexp.build import build

    data = build("dataset", composed(options))
    for row in data.train.index.tolist():
        folder = Path(options.cache) / "spikingjelly" / str(int(data.train.y[row]))
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / f"{row:05d}.npz", frames=data.train.x[row].numpy().astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=None, help="an N-MNIST folder; default: the embedded recordings")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default=None)
    parser.add_argument("--side", choices=SIDES)
    options = parser.parse_args()
    if options.side:
        import torch

        torch.set_num_threads(options.threads)
        rate = SIDES[options.side](options)
        print(json.dumps({"rate": rate, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    with tempfile.TemporaryDirectory() as cache:
        options.cache = cache
        options.data = str(Path(options.data).absolute()) if options.data else None
        write_frames(options)
        rows: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side in SIDES:
                command = [sys.executable, __file__, "--side", side, "--cache", cache, "--epochs", str(options.epochs)]
                command += ["--threads", str(options.threads), *(["--data", options.data] if options.data else [])]
                quiet = {**os.environ, "LOGURU_LEVEL": "WARNING"}
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=quiet)
                rows[side].append(json.loads(done.stdout.splitlines()[-1]))
    data = options.data or "embedded"
    print(f"{options.rounds} rounds, {options.threads} threads, batch {BATCH}, T {T}, hidden {HIDDEN}, data {data}")
    print(f"{'side':14}{'samples/s':>10}{'min':>8}{'max':>8}{'peak MiB':>10}")
    for side, runs in rows.items():
        rates, peak = [r["rate"] for r in runs], max(r["mib"] for r in runs)
        print(f"{side:14}{statistics.median(rates):10.0f}{min(rates):8.0f}{max(rates):8.0f}{peak:10.0f}")
    for peer in ("spikingjelly", "bound"):
        ratios = [a["rate"] / b["rate"] for a, b in zip(rows["snnexp"], rows[peer], strict=True)]
        print(f"snnexp / {peer}: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
