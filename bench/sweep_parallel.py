"""Compare two jobs at once on two cores with one job after the other, each job with one thread.

    python bench/sweep_parallel.py [--trials 12] [--rounds 2] [--epochs 15]

The jobs are trainings of the main job in a study. Throughput is trials per minute, as the study records them: of the
whole study, from the start of the first trial to the end of the last, and once every worker has ended its first trial,
for which it imports torch. The sides take turns. The aim is 1.8 times as many trials with two jobs at once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

import optuna


def throughput(parallel: int, trials: int, epochs: int) -> tuple[float, float]:
    """Return the trials per minute of the whole study, and those after the first trial of each worker."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "snnexp.run",
            "-m",
            f"outputs_dir={folder}",
            "tracking=none",
            "neuron.threshold=interval(0.5,1.5)",
            "trainer.threads=1",
            f"trainer.epochs={epochs}",
            "hydra.sweeper.sampler={_target_:optuna.samplers.RandomSampler,seed:0}",
            f"hydra.sweeper.n_trials={trials}",
            f"hydra.sweeper.parallel={parallel}",
        ]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/optuna.db").trials
        begin = min(trial.datetime_start for trial in found if trial.datetime_start)
        ends = sorted(trial.datetime_complete for trial in found if trial.datetime_complete)
        later = (ends[-1] - ends[parallel - 1]).total_seconds()
        return 60 * len(found) / (ends[-1] - begin).total_seconds(), 60 * (len(found) - parallel) / later


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    ratios: list[tuple[float, ...]] = []
    for _ in range(args.rounds):
        one, two = (throughput(parallel, args.trials, args.epochs) for parallel in (1, 2))
        ratios.append(tuple(b / a for a, b in zip(one, two, strict=True)))
        for name, a, b in zip(("whole", "after the start"), one, two, strict=True):
            print(f"{name}: one after the other {a:.2f} trials a minute, two at once {b:.2f}: {b / a:.2f} times")
    whole, later = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median {whole:.2f} times, after the start {later:.2f}")


if __name__ == "__main__":
    main()
