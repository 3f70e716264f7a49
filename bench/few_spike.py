"""Measure the few-spike conversion of a ResNet-20 with ReLU against K, and list the errors of the shipped coefficients.

    python bench/few_spike.py --data cifar10_jpeg.tar.gz --work DIR [--checkpoint best.pt] [--K 4 5 6 8 10]

Trains the ResNet-20 in DIR like bench/convert_accuracy.py, unless --checkpoint is given. Converts it with --images
calibration images for each K and calibration seed, and tests it on --test images spread over the test set. Each result
is appended to DIR/few_spike.jsonl, so you can stop the script at any moment and start it again. Prints two tables.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convert_accuracy import settings, source
from snnexp.conversion.few_spike import FewSpikeConversion
from snnexp.conversion.network import Decoded
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.vocabulary import NUMBERS
from snnexp.conversion.walk import walk
from snnexp.few_spike.table import SHIPPED, load_tables

PER_LAYER = 128  # images on which spikes are counted


def right(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([network(part) for part in x.split(250)]).argmax(1) == y


def measured(ann: nn.Module, calibration: Tensor, x: Tensor, y: Tensor, K: int, per_channel: bool) -> dict[str, Any]:
    source, network = rewrite(ann, calibration[:2], vocabulary=NUMBERS)
    walk(source, network, calibration, K, FewSpikeConversion(per_channel))
    snn = Decoded(network, K)
    _, account = snn.examine(source, x[:: max(1, len(x) // PER_LAYER)], K)
    return {
        "right": bytes(right(snn, x, y).tolist()).hex(),
        "spikes": account.spikes,
        "neurons": account.neurons,
        "energy_nj": account.energy_nj,
        "ann_energy_nj": account.ann_energy_nj,
        **account.more,
    }


def accuracies(results: list[dict[str, Any]], ann: Tensor) -> str:
    lines = [
        f"ANN: {100 * float(ann.mean()):.2f} %",
        "",
        "| K | range | SNN | SNN - ANN (points, ± standard error) | spikes (thousands) | per neuron | "
        "at most two | energy / ANN's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for K, per_channel in sorted({(r["K"], r["per_channel"]) for r in results}):
        same = [r for r in results if (r["K"], r["per_channel"]) == (K, per_channel)]
        hits = torch.stack([torch.tensor(list(bytes.fromhex(r["right"]))).float() for r in same])
        gap = (hits - ann).mean(0)
        mean = {name: sum(r[name] for r in same) / len(same) for name in ("spikes", "at_most_two", "energy_nj")}
        lines.append(
            f"| {K} | {'channel' if per_channel else 'layer'} | {100 * float(hits.mean()):.2f} | "
            f"{100 * float(gap.mean()):+.2f} ± {100 * float(gap.std()) / math.sqrt(len(gap)):.2f} | "
            f"{mean['spikes'] / 1e3:.0f} | {mean['spikes'] / same[0]['neurons']:.2f} | "
            f"{100 * mean['at_most_two']:.1f} % | {mean['energy_nj'] / same[0]['ann_energy_nj']:.3f} |"
        )
    return "\n".join(lines)


def coefficients() -> str:
    lines = [
        "| activation | range | K | mean squared error | largest error | mean spikes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(SHIPPED.glob("*.yaml")):
        lines += [
            f"| {fit.activation} | {list(fit.range)} | {fit.table.K} | {fit.mse:.2e} | {fit.largest:.3f} | "
            f"{fit.spikes:.2f} |"
            for fit in load_tables(path.stem)
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the archive, or a folder with train/ and test/")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--K", type=int, nargs="+", default=[3, 4, 5, 6, 8, 10])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("overrides", nargs="*", help="for the training, e.g. trainer.precision=bf16-mixed")
    args = parser.parse_args()
    ann, data, x, y = source(args)
    log = args.work / "few_spike.jsonl"
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(r["K"], r["per_channel"], r["seed"]) for r in results}
    for K in args.K:
        for seed in range(args.seeds):
            for per_channel in (False, True):
                if (K, per_channel, seed) in done:
                    continue
                sample = settings("calibration", "none", {"images": args.images, "seed": seed}).sample(data.train)
                results.append(
                    {"K": K, "per_channel": per_channel, "seed": seed, **measured(ann, sample, x, y, K, per_channel)}
                )
                with log.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
                print(f"K = {K}, {'channel' if per_channel else 'layer'}, seed {seed}: done", file=sys.stderr)
    print(accuracies(results, right(ann, x, y).float()), coefficients(), sep="\n\n")


if __name__ == "__main__":
    main()
