"""Measure the accuracy of converted ResNet-20s against T, for eight combinations of conversion and calibration.

    python bench/convert_accuracy.py --data cifar10_jpeg.tar.gz --work DIR [--checkpoint best.pt] [--T 4 8 16 32]

Unpacks the images (train/<class>/, test/<class>/) into DIR and trains a ResNet-20 with ReLU there, unless --checkpoint
is given. Converts it with --images calibration images (1,000) for each combination, T and calibration seed: three seeds
up to T = 16, one above; T = 64 and 128 only for light, advanced and best. Tests on --test images (2,000) spread over
the test set. Each result is appended to DIR/accuracy.jsonl, so you can stop the script at any moment and start it
again. Differences between combinations are paired by seed. The table is written to DIR/accuracy.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.build import build
from snnexp.checkpoint import load_into
from snnexp.config import conf_dir
from snnexp.conversion.measure import spread
from snnexp.conversion.network import convert
from snnexp.dataset.base import Data
from snnexp.dataset.image_folder import image_folder
from snnexp.model.resnet import cifar_resnet
from snnexp.timefold import Normalize, TimeFold
from train_cifar import images

COMBINATIONS = {  # name: (conversion, its settings, calibration)
    "max_threshold": ("max_threshold", {}, "none"),
    "threshold_shift": ("threshold_shift", {}, "none"),
    "adaptive_threshold": ("adaptive_threshold", {}, "none"),
    "adaptive, per channel": ("adaptive_threshold", {"per_channel": True, "inputs": "snn"}, "none"),
    "light": ("adaptive_threshold", {}, "light"),
    "potential": ("adaptive_threshold", {}, "potential"),
    "advanced": ("adaptive_threshold", {}, "advanced"),
    "best": ("adaptive_threshold", {}, "best"),
}
LONG = ("light", "advanced", "best")  # also run at T = 64 and 128
PAIRS = (("light", "adaptive_threshold"), ("advanced", "light"), ("best", "advanced"))


def trained(args: argparse.Namespace, folder: Path) -> Path:
    """Return the weights of a ResNet-20 with ReLU: --checkpoint, or trained in --work."""
    if args.checkpoint:
        return args.checkpoint
    outputs = args.work / f"relu-{args.epochs}"
    command = [
        "model=resnet20",
        "neuron=relu",
        "dataset=image_folder",
        f"dataset.root={folder}",
        "dataset.augment.crop=4",
        "dataset.augment.flip=true",
        "loss=cross_entropy",
        "optimizer=sgd",
        "optimizer.lr=0.2",
        "trainer.batch_size=128",
        "scheduler=one_cycle",
        f"trainer.epochs={args.epochs}",
        f"cache_dir={args.work / 'cache'}",
        f"outputs_dir={outputs}",
        "tracking=none",
        "resume=true",
        *args.overrides,
    ]
    subprocess.run([sys.executable, "-m", "snnexp.run", *command], check=True)
    return max(outputs.glob("runs/*/*/best.pt"), key=os.path.getmtime)


def source(args: argparse.Namespace) -> tuple[nn.Module, Data, Tensor, Tensor]:
    """Return the trained ResNet-20 [N, 3, 32, 32] -> [N, 10], its data, and the --test images with their labels."""
    args.work = args.work.absolute()
    folder = images(args.data, args.work)
    data = image_folder(folder, cache=args.work / "cache")
    net = TimeFold(
        cifar_resnet(data.shape, len(data.classes), nn.ReLU, depth=20, width=16, shortcut="B", readout="current"),
        1,
        temporal=False,
        front=Normalize(*data.normalize),
    )
    load_into(net, trained(args, folder))
    x, y = next(data.test.batches(args.test, spread(data.test, args.test)))
    return nn.Sequential(net.front, net.network).eval(), data, x, y


def settings(group: str, option: str, changes: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf

    chosen = OmegaConf.load(f"{conf_dir()}/{group}/{option}.yaml")
    for base in chosen.pop("defaults", []):
        chosen = OmegaConf.merge(OmegaConf.load(f"{conf_dir()}/{group}/{base}.yaml"), chosen)
    whole = OmegaConf.create({"seed": 0, group: OmegaConf.merge(chosen, changes)})
    config = OmegaConf.to_container(whole, resolve=True)
    return build(group, config)


def todo(steps: list[int], seeds: int) -> list[tuple[str, int, int]]:
    """Return (name, T, seed) of all results to compute; those that take long come last."""
    asked = [
        (name, T, seed)
        for T in steps
        for seed in range(seeds if T <= 16 else 1)
        for name in COMBINATIONS
        if T <= 32 or name in LONG
    ]
    return sorted(asked, key=lambda it: (it[1] > 32, it[2], it[1]))


def table(results: list[dict[str, Any]], ann: float) -> str:
    """Format mean accuracies by combination and T, then paired differences with their standard error over images."""
    steps = sorted({r["T"] for r in results})
    lines = [
        f"ANN: {100 * ann:.2f} %",
        "",
        f"| combination | {' | '.join(f'T = {T}' for T in steps)} |",
        f"| --- |{' --- |' * len(steps)}",
    ]
    right = {(r["name"], r["T"], r["seed"]): torch.tensor(list(bytes.fromhex(r["right"]))).float() for r in results}
    for name in COMBINATIONS:
        cells = []
        for T in steps:
            found = [float(v.mean()) for (n, t, _), v in right.items() if (n, t) == (name, T)]
            cells.append(f"{100 * sum(found) / len(found):.2f}" if found else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for a, b in PAIRS:
        cells = []
        for T in steps:
            pairs = [right[a, T, s] - right[b, T, s] for s in range(9) if (a, T, s) in right and (b, T, s) in right]
            each = torch.stack(pairs).mean(0) if pairs else None
            cells.append(
                ""
                if each is None
                else f"{100 * float(each.mean()):+.2f} ± {100 * float(each.std()) / math.sqrt(len(each)):.2f}"
            )
        lines.append(f"| {a} - {b} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the archive, or a folder with train/ and test/")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--T", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("overrides", nargs="*", help="for the training, e.g. trainer.precision=bf16-mixed")
    args = parser.parse_args()
    ann, data, x, y = source(args)

    def right(network: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([network(part) for part in x.split(250)]).argmax(1) == y

    log, accuracy = args.work / "accuracy.jsonl", float(right(ann).float().mean())
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(r["name"], r["T"], r["seed"]) for r in results}
    for name, T, seed in todo(args.T, args.seeds):
        if (name, T, seed) in done:
            continue
        conversion, changes, calibration = COMBINATIONS[name]
        chosen = settings("calibration", calibration, {"images": args.images, "seed": seed})
        start = time.process_time()
        snn, _ = convert(
            ann, chosen.sample(data.train), settings("conversion", conversion, changes), T, chosen.corrections
        )
        seconds = time.process_time() - start
        hits = right(snn)
        results.append({"name": name, "T": T, "seed": seed, "right": bytes(hits.tolist()).hex(), "seconds": seconds})
        with log.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        print(
            f"T = {T}, seed {seed}, {name}: {100 * float(hits.float().mean()):.2f} % (ANN {100 * accuracy:.2f} %), "
            f"calibrated in {seconds:.0f} s",
            file=sys.stderr,
        )
        (args.work / "accuracy.md").write_text(table(results, accuracy))
    print(table(results, accuracy))


if __name__ == "__main__":
    main()
