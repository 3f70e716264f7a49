"""Measure what pruning saves and costs: run a shipped sweep with its pruner and without, for each seed.

    python bench/sweep_pruning.py [--sweep surrogate_alpha] [--seeds 5] [--parallel 2] [-- key=value ...]

Both sides use the same sampler with the same seed. Reported are the best validation accuracy of each side, and the
epochs of all its trials together. The aim is the same best on each seed, at half of the epochs at most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

import optuna


def swept(args: argparse.Namespace, seed: int, *more: str) -> tuple[float, int, int]:
    """Return the best validation accuracy, the epochs of all trials, and the number of pruned trials."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "snnexp.run",
            "-m",
            f"+sweep={args.sweep}",
            f"seed={seed}",
            "tracking=none",
            f"outputs_dir={folder}",
            "trainer.threads=1",
            f"hydra.sweeper.parallel={args.parallel}",
            *args.overrides,
            *more,
        ]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/optuna.db")
        pruned = study.get_trials(states=[optuna.trial.TrialState.PRUNED])
        return study.best_value, sum(len(t.intermediate_values) for t in study.trials), len(pruned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", default="surrogate_alpha")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    print("| seed | best, unpruned | best, pruned | epochs, unpruned | epochs, pruned | pruned trials |")
    print(6 * "| --- " + "|")
    rows = []
    for seed in range(args.seeds):
        whole, all_epochs, _ = swept(args, seed, "hydra.sweeper.pruner=null")
        cut, epochs, pruned = swept(args, seed)
        rows.append((100 * (cut - whole), epochs / all_epochs))
        print(f"| {seed} | {whole:.4f} | {cut:.4f} | {all_epochs} | {epochs} | {pruned} |", flush=True)
    points, share = (statistics.fmean(column) for column in zip(*rows, strict=True))
    same = sum(difference >= 0 for difference, _ in rows)
    print(f"\nno worse best on {same} of {len(rows)} seeds")
    print(f"mean difference {points:+.2f} points (worst {min(p for p, _ in rows):+.2f}) at {share:.2f} of the epochs")


if __name__ == "__main__":
    main()
