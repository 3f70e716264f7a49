"""Measure the cost of a sweep per trial, with jobs that do nothing, one after the other, and an SQLite study.

    python bench/sweep_overhead.py [--trials 40] [--rounds 3] [--peer VENV]

| side | what runs |
| --- | --- |
| function | `study.optimize` on a function, without Hydra |
| hydra | Hydra's own grid with snnexp's configs: composes a job's config, has no study |
| snnexp sweeper | the same program under snnexp's sweeper |
| hydra-optuna-sweeper | the same program under that sweeper, in an environment with its Optuna and SQLAlchemy |
| snnexp | all of snnexp, `tracking=none`, jobs in the sweep's own process |
| snnexp, a process each | the same with the default: each job in a forked process (wall time only) |
| snnexp, MLflow | as snnexp, with an SQLite MLflow store |
| MLflow | only the calls that such a run makes: run, parameters, tags, config file, result, end |

The sides take turns, each in a fresh process. The time of a trial is the time from its start to the start of the next.
Reported are the medians of the wall time and of the processor time, which other programs on the machine disturb less.
The aims are 90 ms of the processor for snnexp, and 150 ms of wall time with a process each, on a quiet machine.
--peer is the folder of the other sweeper's environment, which pip creates if it does not exist.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEER = ("hydra-core==1.3.8", "hydra-optuna-sweeper==1.3.0", "sqlalchemy<2", "setuptools<81")
FORKED = "snnexp, a process each"
X = "neuron.threshold=interval(0.5,2)"


def function(folder: Path, n: int) -> None:
    import optuna

    from nothing import mark

    def objective(trial: optuna.Trial) -> float:
        mark()
        return 0.5 + 0 * trial.suggest_float("x", 0.5, 2)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler(seed=0)
    optuna.create_study(storage=f"sqlite:///{folder}/study.db", sampler=sampler).optimize(objective, n_trials=n)


def mlflow_alone(folder: Path, n: int) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    from nothing import mark

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("bare", artifact_location=str(folder / "artifacts"))
    (folder / "config.yaml").write_text("a: 1\n" * 80)
    for i in range(n):
        mark()
        run = client.create_run(experiment, tags={"key": str(i)}).info.run_id
        client.update_run(run, status="RUNNING", name=f"{i}")
        client.log_batch(
            run, params=[Param(f"p{j}", str(j)) for j in range(70)], tags=[RunTag(f"t{j}", str(j)) for j in range(8)]
        )
        client.log_artifact(run, str(folder / "config.yaml"))
        client.log_batch(run, metrics=[Metric("a", 0.5, int(time.time()), 0)], tags=[RunTag("status", "finished")])
        client.set_terminated(run)


def commands(folder: Path, n: int, peer: Path) -> dict[str, list[str]]:
    common = ["-m", f"outputs_dir={folder}"]
    study = [X, f"hydra.sweeper.n_trials={n}", f"hydra.sweeper.storage=sqlite:///{folder}/study.db"]
    random = ["hydra.sweeper.sampler={_target_:optuna.samplers.RandomSampler,seed:0}"]
    no_callbacks = ["~hydra.callbacks.outputs", "~hydra.callbacks.grid"]
    program = [str(HERE / "nothing.py")]
    ours = ["-m", "snnexp.run", *common, "task._target_=nothing_task.NothingTask", *study, *random]
    theirs = [
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=random",
        "hydra.sweeper.sampler.seed=0",
        "hydra.sweeper.study_name=peer",
        "hydra.sweeper.direction=maximize",
        *no_callbacks,
    ]
    me, here = str(Path(__file__).resolve()), "hydra.sweeper.isolate=false"
    return {
        "function": [sys.executable, me, "--side", "function"],
        "hydra": [sys.executable, *program, *common, *no_callbacks, "hydra/sweeper=basic", f"seed=range({n})"],
        "snnexp sweeper": [sys.executable, *program, *common, *study, *random, "tracking=none", here],
        "hydra-optuna-sweeper": [str(peer / "bin" / "python"), *program, *common, *theirs, *study],
        "snnexp": [sys.executable, *ours, "tracking=none", here],
        FORKED: [sys.executable, *ours, "tracking=none"],
        "snnexp, MLflow": [sys.executable, *ours, here],
        "MLflow": [sys.executable, me, "--side", "mlflow"],
    }


def measured(side: str, n: int, peer: Path) -> tuple[float, float]:
    """Return the median milliseconds from the start of a trial to that of the next: wall time and processor time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = folder / "starts"
        own = {"STARTS": str(starts), "OUT": name, "N": str(n), "MLFLOW_DISABLE_TELEMETRY": "true"}
        path = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}" if side != "hydra-optuna-sweeper" else ""
        done = subprocess.run(
            commands(folder, n, peer)[side],
            env=os.environ | own | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{side}: {done.stdout}{done.stderr}")
        times = [[float(word) for word in line.split()] for line in starts.read_text().splitlines()]
        if len(times) != n:
            sys.exit(f"{side}: {len(times)} of {n} trials began")
        clock, processor = ([1000 * (b - a) for a, b in pairwise(column)] for column in zip(*times, strict=True))
        # the processor time of a forked process starts at 0
        return statistics.median(clock), float("nan") if side == FORKED else statistics.median(processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", type=Path, default=Path(tempfile.gettempdir()) / "hydra-optuna-sweeper")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        {"function": function, "mlflow": mlflow_alone}[args.side](Path(os.environ["OUT"]), int(os.environ["N"]))
        return
    if not (args.peer / "bin" / "python").exists():
        venv.create(args.peer, with_pip=True)
        subprocess.run([args.peer / "bin" / "python", "-m", "pip", "install", "-q", *PEER], check=True)
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in commands(Path(), 1, args.peer)}
    for _ in range(args.rounds):
        for side, found in times.items():
            found.append(measured(side, args.trials, args.peer))
            print(f"{side}: {found[-1][0]:.0f} ms, {_whole(found[-1][1])} ms of the processor", file=sys.stderr)
    print("| side | ms a trial, median of rounds (least to most) | ms of the processor |\n| --- | --- | --- |")
    for side, found in times.items():
        print(f"| {side} | {' | '.join(shown(column) for column in zip(*found, strict=True))} |")


def shown(values: tuple[float, ...]) -> str:
    median, least, most = (_whole(f(values)) for f in (statistics.median, min, max))
    return median if median == "-" else f"{median} ({least} to {most})"


def _whole(value: float) -> str:
    """Return the value in whole numbers; "-" for nan, the processor time of a side that has none."""
    return "-" if math.isnan(value) else f"{value:.0f}"


if __name__ == "__main__":
    main()
