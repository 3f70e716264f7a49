"""What the runner costs per trial: a job that does nothing, in one process, with an SQLite study and tracking=none.

    python bench/sweep_overhead.py [--trials 40]

Beside it, `study.optimize` on the same function and the same kind of storage. The time of a trial is from its start
to the next one's, as the storage has them; the median is given, which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import optuna

APP = Path(__file__).resolve().parents[1] / "tests" / "sweep_app.py"


def per_trial(url: str) -> float:
    (summary,) = optuna.get_all_study_summaries(url)
    trials = optuna.load_study(study_name=summary.study_name, storage=url).trials
    starts = [trial.datetime_start.timestamp() for trial in trials if trial.datetime_start]
    return 1000 * statistics.median(b - a for a, b in pairwise(starts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    n = parser.parse_args().trials
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        bare = f"sqlite:///{folder}/bare.db"
        study = optuna.create_study(storage=bare, sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 4), n_trials=n)
        (Path(folder) / "outputs").mkdir()
        ours = f"sqlite:///{folder}/ours.db"
        command = [sys.executable, str(APP), "-m", f"outputs_dir={folder}/outputs", "x=interval(0,4)",
                   f"hydra.sweeper.n_trials={n}", f"hydra.sweeper.storage={ours}",
                   "hydra.sweeper.sampler={_target_:optuna.samplers.RandomSampler,seed:0}"]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        a, b = per_trial(bare), per_trial(ours)
    print(f"study.optimize {a:.1f} ms a trial, snnexp {b:.1f} ms: {b - a:.1f} ms more")


if __name__ == "__main__":
    main()
