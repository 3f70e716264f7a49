"""Measure the surrogates of docs/results.md: the lab's S(x) and P(x) against Sigmoid, and adaptive Dspike.

    python bench/surrogate_study.py --work DIR [--data DIR] [--seeds 5] [--part lab|dspike|cost]

`--data` is an N-MNIST folder; without it the embedded recordings are used. Every finished run is appended to
DIR/runs.jsonl and not repeated, so you can start the script again after an interruption.

    lab     sigmoid, sine (alpha 1 and 2) and power (alpha 0.5): default network and loss, paired by seed with sigmoid
    dspike  fixed temperatures, and adaptive from two bad starts; 128 hidden neurons, readout=potential, cross-entropy
    cost    processor time of choosing the temperature, relative to the epochs without it; 1,024 weights
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from snnexp.analysis import temperature
from snnexp.config import conf_dir
from snnexp.evaluate import evaluate
from snnexp.session import Session
from snnexp.task.train import train_network
from snnexp.training import load_checkpoint

LAB = {
    "sigmoid": "surrogate=sigmoid",
    "S(x), alpha 1": "surrogate=sine surrogate.alpha=1.0",
    "S(x), alpha 2": "surrogate=sine surrogate.alpha=2.0",
    "P(x), alpha 0.5": "surrogate=power surrogate.alpha=0.5",
}
POTENTIAL = "model.readout=potential loss=cross_entropy"
FIXED = {f"fixed b = {b}": f"surrogate=dspike surrogate.b={b}" for b in (0.1, 1.0, 3.0, 10.0, 100.0)}
MOVES = "surrogate.high=100.0 surrogate.db=5.0 surrogate.moves=20"
ADAPTIVE = {f"adaptive from b = {b}": f"surrogate=dspike_adaptive surrogate.b={b} {MOVES}" for b in (0.1, 100.0)}


class Runs:
    """Finished runs by their overrides, stored in a file."""

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.file = work, work / "runs.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.known = {record["key"]: record for record in map(json.loads, lines)}

    def __call__(self, overrides: str, seed: int) -> dict[str, Any]:
        """Return accuracies of the best epoch, the last temperature, and processor seconds of training and choices."""
        key = f"{overrides} seed={seed}"
        if key not in self.known:
            self.known[key] = {"key": key} | self._run(key)
            with self.file.open("a") as file:
                file.write(json.dumps(self.known[key]) + "\n")
        return self.known[key]

    def _run(self, key: str) -> dict[str, Any]:
        session, folder = self._session(key.split()), Path(tempfile.mkdtemp(dir=self.work))
        net, choices = session.network(), [0.0]

        def timed(*arguments: Any) -> None:
            begin = time.process_time()
            chosen(*arguments)
            choices.append(time.process_time() - begin)

        chosen, begin = temperature.choose, time.process_time()
        with patch.object(temperature, "choose", timed), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            progress = train_network(session.trainer.fabric(), session, net, folder)
        seconds = time.process_time() - begin
        best = load_checkpoint(folder / "best.pt")
        net.load_state_dict(best["model"])
        test = evaluate(net, session.data.test, session.loss, 256, torch.device("cpu"), 10).accuracy
        return {
            "val": best["metrics"]["val/accuracy"],
            "test": test,
            "b": progress.history[-1].get("train/b"),
            "seconds": seconds - sum(choices),
            "choices": sum(choices),
        }

    def _session(self, overrides: Sequence[str]) -> Session:
        fixed = [
            f"cache_dir={self.work / 'cache'}",
            f"outputs_dir={self.work}",
            "tracking=none",
            "trainer.accelerator=cpu",
            "trainer.threads=1",
        ]
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            config = OmegaConf.to_container(compose("config", overrides=[*overrides, *fixed]), resolve=True)
        torch.set_num_threads(1)
        return Session(config, {})  # type: ignore[arg-type]


def table(runs: Runs, variants: dict[str, str], common: str, seeds: int) -> dict[str, dict[str, list[float]]]:
    """Print and return the validation and test accuracies of each variant over the seeds."""
    made: dict[str, dict[str, list[float]]] = {}
    print(f"{common}, {seeds} seeds: validation | test (mean ± sd) | test by seed", flush=True)
    for name, overrides in variants.items():
        found = [runs(f"{common} {overrides}", seed) for seed in range(seeds)]
        made[name] = {split: [record[split] for record in found] for split in ("val", "test")}
        text = " | ".join(spread(values) for values in made[name].values())
        last = [f"{record['b']:.1f}" for record in found if record["b"] is not None]
        ends = f" | b at the end: {' '.join(last)}" if last else ""
        print(f"  {name:22} {text} | {' '.join(f'{v:.3f}' for v in made[name]['test'])}{ends}", flush=True)
    return made


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


def paired(a: dict[str, list[float]], b: dict[str, list[float]]) -> str:
    """Format the differences a - b, paired by seed, on both splits."""
    return " | ".join(f"{split} {spread([p - q for p, q in zip(a[split], b[split], strict=True)])}" for split in a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", help="an N-MNIST folder")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", choices=["lab", "dspike", "cost"], help="default: all three")
    options = parser.parse_args()
    runs, parts = Runs(options.work), [options.part] if options.part else ["lab", "dspike", "cost"]
    place = f"dataset=nmnist dataset.root={Path(options.data).absolute()}" if options.data else "dataset=digits_saccade"
    if "lab" in parts:
        found = table(runs, LAB, place, options.seeds)
        for name in list(LAB)[1:]:
            print(f"  {name} - sigmoid: {paired(found[name], found['sigmoid'])}")
    if "dspike" in parts:
        common = f"{place} model.hidden=128 {POTENTIAL}"
        fixed = table(runs, FIXED, common, options.seeds)
        best = max(fixed, key=lambda name: statistics.mean(fixed[name]["val"]))  # never chosen on the test split
        for name, found in table(runs, ADAPTIVE, common, options.seeds).items():
            print(f"  {name} - {best} (the best by validation): {paired(found, fixed[best])}")
    if "cost" in parts:
        overrides = f"{place} {POTENTIAL} surrogate=dspike_adaptive {MOVES} trainer.epochs=6"
        shares = [r["choices"] / r["seconds"] for r in (runs(overrides, seed) for seed in range(options.seeds))]
        print(
            f"{place}: processor time of the choices over that of the epochs without them, by seed: "
            f"{' '.join(f'{share:.1%}' for share in shares)}; median {statistics.median(shares):.1%}"
        )


if __name__ == "__main__":
    main()
