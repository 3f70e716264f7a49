"""A small store with known numbers, written through the tracker, and the report on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from matplotlib.figure import Figure

from snnexp.build import build
from snnexp.session import Session
from snnexp.task.base import Task
from snnexp.tracking import MLflow, Status

SIGMOID, ATAN = (0.90, 0.92, 0.94), (0.80, 0.80, 0.83)  # test accuracies by seed
AT_T = {1: (0.25, 0.35), 4: (0.75, 0.85), 16: (0.95, 0.95)}  # by seed; the ANN has 0.97 in both
RANKING = [("surrogate", "score", "spikes"), ("atan", "0.123456789", "123456.7"), ("sigmoid", "1e-07", "12")]
TRAINED = {"task": "train", "dataset": "digits", "model": "mlp", "neuron": "lif"}
CONVERTED = TRAINED | {"task": "convert", "neuron": "relu", "conversion": "qcfs"}


def logged(
    outputs: Path,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, object],
    metrics: Mapping[str, float] | None = None,
    *,
    experiment: str = "lab",
    curve: Mapping[int, float] | None = None,
    files: Sequence[str] = (),
    parent: str | None = None,
    status: Status = "FINISHED",
) -> str:
    """Log a run; returns its id. `curve` is test/snn_accuracy by T; `files`: tables, figures, of each one."""
    tracker = MLflow(experiment=experiment, outputs=outputs)
    folder = outputs / "runs" / str(len(list(outputs.glob("runs/*"))))
    folder.mkdir(parents=True)
    tracker.start(folder, name, params, tags, parent)
    tracker.metrics(metrics or {}, step=10)
    for T, accuracy in (curve or {}).items():
        tracker.metrics({"test/snn_accuracy": accuracy}, step=T)
    for part in files:
        (folder / part).mkdir()
        if part == "tables":
            (folder / part / "ranking.csv").write_text("\n".join(",".join(row) for row in RANKING) + "\n")
        else:
            Figure(figsize=(6, 3)).savefig(folder / part / "val_accuracy.png", dpi=120)
        tracker.artifact(folder / part)
    tracker.finish(status)
    return str(tracker.run_id)


def fill(outputs: Path) -> str:
    """The store: a sweep of two surrogates and three seeds (a run repeated, one failed), a conversion with two seeds,
    a comparison that has a table of its own, another experiment. Returns the sweep's run id.
    """
    swept = {"task": "sweep", "sweep": "grid", "best": "sigmoid seed=2"}
    parent = logged(
        outputs, "surrogate x seed", swept, {"surrogate": "sigmoid,atan"}, {"best/val/accuracy": 0.9}, files=["figures"]
    )

    def child(surrogate: str, seed: int, accuracy: float, status: Status = "FINISHED") -> None:
        alpha = {"sigmoid": 4.0, "atan": 2.0}[surrogate]
        logged(
            outputs,
            f"{surrogate} seed={seed}",
            TRAINED | {"surrogate": surrogate},
            {"surrogate.alpha": alpha, "neuron.surrogate.alpha": alpha, **_seeded(seed), "timesteps": 10},
            {"val/accuracy": accuracy - 0.01, "test/accuracy": accuracy},
            parent=parent,
            files=["figures"],
            status=status,
        )

    child("sigmoid", 0, 0.10)  # repeated below: the newest counts
    for surrogate, accuracies in (("sigmoid", SIGMOID), ("atan", ATAN)):
        for seed, accuracy in enumerate(accuracies):
            child(surrogate, seed, accuracy)
    child("atan", 3, 0.99, "FAILED")
    for seed in (0, 1):
        logged(
            outputs,
            f"mlp-digits-relu-qcfs-s{seed}",
            CONVERTED,
            {**_seeded(seed), "timesteps": [1, 4, 16]},
            {"test/ann_accuracy": 0.97},
            curve={T: of[seed] for T, of in AT_T.items()},
            files=["figures"],
        )
    logged(
        outputs,
        "mlp-digits-lif",
        TRAINED | {"task": "compare_surrogates"},
        {"seed": 0, "task.seeds": [0, 1, 4], "timesteps": 10},
        {"test/accuracy": 0.9},
        files=["tables", "figures"],
    )
    logged(outputs, "<b>x|y</b> & *z*", TRAINED, {"seed": 0}, {"test/accuracy": 0.5}, experiment="other")
    return parent


def _seeded(seed: int) -> dict[str, object]:
    return {"seed": seed, "dataset.seed": seed}


def report(outputs: Path, **keys: Any) -> None:
    """What `snnexp task=report` does, without the command line."""
    session = SimpleNamespace(tracker=MLflow(outputs=outputs), config={"outputs_dir": str(outputs)})
    build("task", {"task": {"_target_": "snnexp.task.report.Report", **keys}}, Task).run(cast(Session, session), None)


def rows(table: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """A table with its header first as a dict per row."""
    head, *body = table
    return [dict(zip(head, row, strict=True)) for row in body]
