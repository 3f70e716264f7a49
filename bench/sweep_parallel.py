"""Compare two jobs at once on two cores with one job after the other, each job with one thread.

    python bench/sweep_parallel.py [--trials 8] [--rounds 2] [--epochs 15]

The jobs are trainings of the main job in a study. Throughput is trials per minute from the start of the first trial to
the end of the last, as the study records them. The sides take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

import optuna


def throughput(parallel: int, trials: int, epochs: int) -> float:
    """Return the throughput in trials per minute."""
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
        end = max(trial.datetime_complete for trial in found if trial.datetime_complete)
        return 60 * len(found) / (end - begin).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    ratios = []
    for _ in range(args.rounds):
        one, two = (throughput(parallel, args.trials, args.epochs) for parallel in (1, 2))
        ratios.append(two / one)
        print(f"one after the other {one:.2f} trials a minute, two at once {two:.2f}: {ratios[-1]:.2f} times")
    print(f"median {statistics.median(ratios):.2f} times")


if __name__ == "__main__":
    main()
