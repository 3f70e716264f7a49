"""Measure mitigations of the unevenness error: test accuracy, latency, spikes, energy and unevenness, on real images.

    python bench/mitigation_accuracy.py --data cifar10_jpeg.tar.gz --work DIR --network resnet20 best.pt [best.pt ...]

Takes networks trained with QCFS by bench/train_cifar.py (one file per seed, L = --levels) and converts them with
conversion=qcfs. Each mitigation is tested at --total steps per layer, rehearsals included, and at twice as many. Every
result is saved at once, so a killed run can be continued. Unevenness and costs are means over 256 validation images.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convert_accuracy import settings
from snnexp.checkpoint import load_into
from snnexp.conversion.measure import spread
from snnexp.conversion.network import Converted
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.walk import walk
from snnexp.dataset.image_folder import image_folder
from snnexp.model.resnet import cifar_resnet
from snnexp.model.wideresnet import WideResNet
from snnexp.neuron.qcfs import QCFS
from snnexp.timefold import Normalize, TimeFold
from train_cifar import images

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("residual_membrane", {"rehearse": 1}),
    ("residual_membrane", {"rehearse": 2}),
    ("residual_membrane", {"rehearse": 4}),
    ("offset_spike", {"rehearse": 1}),
    ("offset_spike", {"rehearse": 2}),
    ("offset_spike", {"rehearse": 4}),
    ("offset_spike", {"rehearse": 2, "rounds": 2}),
    ("signed", {"level": 1.0}),
    ("signed", {"level": 0.0}),
    ("waiting", {}),
]


def name(option: str, changes: dict[str, Any]) -> str:
    return " ".join([option, *(f"{key}={value:g}" for key, value in changes.items())])


def network(kind: str, shape: tuple[int, ...], classes: int, levels: int) -> nn.Module:
    def neuron() -> nn.Module:
        return QCFS(levels)

    if kind == "resnet20":
        return cifar_resnet(shape, classes, neuron, depth=20, width=16, shortcut="B", readout="current")
    return WideResNet(shape, classes, neuron, depth=16, widen=1, dropout=0.0, readout="current")


def hits(record: dict[str, Any]) -> Tensor:
    return torch.tensor(list(bytes.fromhex(record["right"]))).double()


def interval(values: list[Tensor]) -> tuple[float, float]:
    """Return the mean over seeds and images, and its standard error: over several seeds, or else over images."""
    means = [float(v.mean()) for v in values]
    mean = sum(means) / len(means)
    if len(values) == 1:
        return mean, float(values[0].std()) / math.sqrt(len(values[0]))
    return mean, math.sqrt(sum((m - mean) ** 2 for m in means) / (len(means) - 1) / len(means))


def table(results: list[dict[str, Any]]) -> str:
    """Format results by total steps and option; differences are to `none` at the same total, images and networks."""
    seeds = sorted({r["seed"] for r in results})
    found = {(r["name"], r["total"], r["seed"]): r for r in results}
    ann = interval([hits(found["ANN", 0, s]) for s in seeds])[0]
    lines = [
        f"ANN: {100 * ann:.2f} %, {len(seeds)} network(s)",
        "",
        "| steps a layer | mitigation | T | steps to the answer | accuracy | to none | share of the gap | "
        "spikes | energy, uJ | over-fire, % | under-fire, % | unevenness, spikes |",
        "| --- " * 12 + "|",
    ]
    for total in sorted({r["total"] for r in results} - {0}):
        for label in dict.fromkeys(r["name"] for r in results if r["total"] == total):
            runs = [found[label, total, s] for s in seeds if (label, total, s) in found]
            plain = [hits(found["none", total, r["seed"]]) for r in runs]
            accuracy, error = interval([hits(r) for r in runs])
            gain, spread_ = interval([hits(r) - p for r, p in zip(runs, plain, strict=True)])
            gap = ann - interval(plain)[0]
            mean = {k: sum(r[k] for r in runs) / len(runs) for k in ("spikes", "energy", "over", "under", "uneven")}
            cells = [
                total,
                label,
                runs[0]["T"],
                runs[0]["latency"],
                f"{100 * accuracy:.2f} ± {100 * error:.2f}",
                f"{100 * gain:+.2f} ± {100 * spread_:.2f}",
                f"{gain / gap:.2f}",
                f"{mean['spikes'] / 1e3:.1f} k",
                f"{mean['energy'] / 1e3:.2f}",
                f"{100 * mean['over']:.2f}",
                f"{100 * mean['under']:.2f}",
                f"{mean['uneven']:.4f}",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="one a seed, in the order of seeds")
    parser.add_argument("--data", type=Path, required=True, help="the archive, or a folder with train/ and test/")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--network", choices=("resnet20", "wrn16_1"), default="resnet20")
    parser.add_argument("--levels", type=int, default=8)
    parser.add_argument("--total", type=int, default=4)
    parser.add_argument("--test", type=int, default=2000)
    args = parser.parse_args()
    args.work = args.work.absolute()
    data = image_folder(images(args.data, args.work), cache=args.work / "cache")
    x, y = next(data.test.batches(args.test, spread(data.test, args.test)))
    seen, _ = next(data.val.batches(256, spread(data.val, 256)))
    log = args.work / f"mitigations-{args.network}.jsonl"
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def keep(record: dict[str, Any]) -> None:
        results.append(record)
        with log.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(
            f"seed {record['seed']}, {record['total']} steps, {record['name']}: "
            f"{100 * float(hits(record).mean()):.2f} %",
            file=sys.stderr,
        )

    def right(net: Any) -> str:
        with torch.inference_mode():
            return bytes((torch.cat([net(part) for part in x.split(250)]).argmax(1) == y).tolist()).hex()

    for seed, checkpoint in enumerate(args.checkpoints):
        net = TimeFold(
            network(args.network, data.shape, len(data.classes), args.levels),
            1,
            temporal=False,
            front=Normalize(*data.normalize),
        )  # type: ignore[misc]
        load_into(net, checkpoint)
        ann = nn.Sequential(net.front, net.network).eval()
        done = {(r["name"], r["total"]) for r in results if r["seed"] == seed}
        if ("ANN", 0) not in done:
            keep({"name": "ANN", "total": 0, "seed": seed, "right": right(ann)})
        method = settings("conversion", "qcfs", {})
        source, placed = rewrite(ann, seen[:2], method.maxpool)
        walk(source, placed, seen[:2], 1, method)  # the result depends neither on T nor on the images
        for total in (args.total, 2 * args.total):
            for option, changes in OPTIONS:
                mitigation = settings("mitigation", option, changes)
                T = total - mitigation.steps(0)
                if (name(option, changes), total) in done or max(1, mitigation.again) > T:
                    continue
                snn = mitigation.applied(Converted(placed, T))
                layers, account = snn.examine(source, seen, T)
                whole = [sum(getattr(layer, k) for layer in layers) / len(layers) for k in ("over", "under")]
                uneven = sum(layer.over_spikes + layer.under_spikes for layer in layers) / len(layers)
                keep(
                    {
                        "name": name(option, changes),
                        "total": total,
                        "T": T,
                        "seed": seed,
                        "right": right(snn),
                        "latency": account.latency,
                        "spikes": account.spikes,
                        "energy": account.energy_nj,
                        "over": whole[0],
                        "under": whole[1],
                        "uneven": uneven,
                        "layers": [asdict(layer) for layer in layers],
                    }
                )
    print(table(results))


if __name__ == "__main__":
    main()
