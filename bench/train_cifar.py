"""Train source networks for conversion on the JPEG-coded CIFAR-10, and write their accuracy by seed as a table.

    python bench/train_cifar.py --data cifar10_jpeg.tar.gz --work DIR [--network resnet20 wrn16_1] [--epochs 20]

Unpacks the archive (train/<class>/, test/<class>/) into DIR once, trains each network through the command
line, with a recipe that suits the number of epochs, and writes DIR/table.md. You can stop the script at any moment and
start it again: finished runs are kept, and an interrupted run continues from its last checkpoint. The weights of a run
are in best.pt in its folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import torch

QCFS = ["neuron=qcfs", "neuron.L=8", "neuron.lam=4.0"]
NETWORKS = {
    "resnet20": ["model=resnet20", *QCFS],
    "resnet20_relu": ["model=resnet20", "neuron=relu"],
    "wrn16_1": ["model=wideresnet", "model.depth=16", "model.widen=1", *QCFS],
    "wrn16_4": ["model=wideresnet", "model.depth=16", "model.widen=4", *QCFS],
    "vgg16_max": ["model=vgg16", "model.width=16", "model.hidden=[]", "model.pooling=max", "neuron=relu"],
}


def images(data: Path, work: Path) -> Path:
    """Return the folder with train/ and test/: `data` itself, or the archive `data` unpacked into `work`."""
    work.mkdir(parents=True, exist_ok=True)
    return data.absolute() if data.is_dir() else unpacked(data, work)


def unpacked(archive: Path, work: Path) -> Path:
    """Return the folder with the archive's images; it is either complete or does not exist."""
    folder = work / "images"
    if not folder.exists():
        partial = work / "images.partial"
        print(f"unpacking {archive}", file=sys.stderr)
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        (found,) = {p.parent for p in partial.glob("**/train")}
        found.rename(folder)
    return folder


def command(args: argparse.Namespace, folder: Path, network: str, seed: int, outputs: Path) -> list[str]:
    # few epochs: a one-cycle schedule and light augmentation; many epochs: the recipe of QCFS
    short = args.epochs < 100
    recipe = (
        ["scheduler=one_cycle"]
        if short
        else ["scheduler=cosine", "dataset.augment.policy=cifar10", "dataset.augment.cutout=16"]
    )
    return [
        *NETWORKS[network],
        "dataset=image_folder",
        f"dataset.root={folder}",
        "dataset.augment.crop=4",
        "dataset.augment.flip=true",
        "loss=cross_entropy",
        "optimizer=sgd",
        "optimizer.lr=0.1",
        "trainer.batch_size=128",
        *recipe,
        f"trainer.epochs={args.epochs}",
        f"seed={seed}",
        f"cache_dir={args.work / 'cache'}",
        f"outputs_dir={outputs}",
        "tracking=none",
        "resume=true",
        *args.overrides,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the archive, or a folder with train/ and test/")
    parser.add_argument("--work", type=Path, required=True, help="for the images, the cache, runs and the table")
    parser.add_argument("--network", nargs="+", default=["resnet20", "wrn16_1"], choices=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="further settings, e.g. trainer.precision=bf16-mixed")
    args = parser.parse_args()
    args.work = args.work.absolute()
    folder = images(args.data, args.work)

    rows = []
    for network in args.network:
        for seed in range(args.seeds):
            outputs = args.work / f"{network}-{args.epochs}-s{seed}"
            arguments = command(args, folder, network, seed, outputs)
            print(shlex.join(["snnexp", *arguments]), file=sys.stderr)
            subprocess.run([sys.executable, "-m", "snnexp.run", *arguments], check=True)
            done = max(outputs.glob("runs/*/*/result.json"), key=os.path.getmtime)
            result = json.loads(done.read_text())
            weights = (done.parent / "best.pt").stat().st_size / 2**20
            rows.append(
                f"| {network} | {seed} | {args.epochs} | {100 * result['val/accuracy']:.2f} | "
                f"{100 * result['test/accuracy']:.2f} | {result['seconds'] / 60:.1f} | {weights:.1f} |"
            )
            machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
            table = [
                "| network (QCFS, L = 8) | seed | epochs | validation % | test % | minutes | weights MiB |",
                "| --- | --- | --- | --- | --- | --- | --- |",
                *rows,
                "",
                f"{machine}, {os.cpu_count()} cores, torch {torch.__version__}",
            ]
            (args.work / "table.md").write_text("\n".join(table) + "\n")
    print((args.work / "table.md").read_text())


if __name__ == "__main__":
    main()
