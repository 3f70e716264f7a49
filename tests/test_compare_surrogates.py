"""`task=compare_surrogates` on a small made-up sweep, whose tables can be worked out by hand."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from conftest import ROOT, SMALL, Done

# option, alpha: test accuracies by seed, validation accuracy by epoch, share of zero potentials
MADE = {
    ("piecewise_quadratic", 1.0): ((0.90, 0.94), (0.50, 0.90, 0.95), 0.3),
    ("piecewise_quadratic", 2.0): ((0.60, 0.64), (0.20, 0.40, 0.60), 0.8),
    ("piecewise_exp", 2.0): ((0.95, 0.97), (0.70, 0.94, 0.96), 0.0),
    ("sine", 1.0): ((0.80, 0.80), (0.30, 0.70, 0.80), 0.2),
}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for number, ((option, alpha), (tests, learning, zeros)) in enumerate(MADE.items()):
        for seed, test in enumerate(tests):
            folder = tmp_path / "sweep" / str(2 * number + seed)
            folder.mkdir(parents=True)
            surrogate: Any = OmegaConf.load(ROOT / "conf" / "surrogate" / f"{option}.yaml")
            OmegaConf.save(
                OmegaConf.create({"seed": seed, "surrogate": {**surrogate, "alpha": alpha}}), folder / "config.yaml"
            )
            history = [
                {"val/accuracy": value, "sparsity/potentials/neuron1": zeros, "sparsity/skippable": zeros / 2}
                for value in learning
            ]
            torch.save({"history": history}, folder / "last.pt")
            result = {"val/accuracy": learning[-1], "test/accuracy": test, "sparsity/skippable": zeros / 2}
            (folder / "result.json").write_text(json.dumps(result))
            (folder / "job.json").write_text(json.dumps({"folder": str(folder)}))
    (tmp_path / "sweep" / "8").mkdir()  # a job that has not finished
    (tmp_path / "sweep" / "8" / "job.json").write_text(json.dumps({"folder": str(tmp_path / "sweep" / "8")}))
    return tmp_path / "sweep"


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_tables_and_figures_of_a_sweep(snnexp: Callable[..., Done], sweep: Path) -> None:
    done = snnexp(*SMALL, "task=compare_surrogates", f"task.sweep={sweep}", "tracking=none")
    assert done.code == 0, done.err
    (folder,) = done.runs()
    assert done.result() == {"val/accuracy": 0.96, "test/accuracy": 0.96, "settings": 4.0, "runs": 8.0}

    settings = {(r["surrogate"], float(r["value"])): r for r in table(folder, "settings")}
    assert float(settings["PiecewiseQuadratic", 1.0]["test/accuracy sd"]) == pytest.approx(0.04 / math.sqrt(2))
    shape = {k: float(settings["PiecewiseQuadratic", 2.0][k]) for k in ("peak", "area", "support")}
    assert shape == pytest.approx({"peak": 2.0, "area": 1.0, "support": 0.99}, abs=2e-3)  # half-width 1/2, 1 % off
    speed = next(key for key in settings["Sine", 1.0] if key.startswith("epochs to"))
    assert speed == "epochs to 0.912"  # 0.95 of the best, 0.96
    assert [float(r[speed]) for r in settings.values()] == pytest.approx([2.0, 3.0, math.nan, math.nan], nan_ok=True)

    ranking = table(folder, "ranking")
    assert [r["surrogate"] for r in ranking] == ["PiecewiseExp", "PiecewiseQuadratic", "Sine"]
    assert [float(r["value"]) for r in ranking] == [2.0, 1.0, 1.0], "each at its best value by validation"
    # standard deviation pooled over the four settings: variances 2e-4, 8e-4, 8e-4 and 0; t(0.975, 4) = 2.776
    half = 2.7764 * math.sqrt((2e-4 + 8e-4 + 8e-4) / 4) / math.sqrt(2)
    assert float(ranking[0]["high"]) == pytest.approx(0.96 + half, abs=1e-5)
    assert float(ranking[2]["low"]) == pytest.approx(0.80 - half, abs=1e-5)

    pair = table(folder, "same_peak")
    assert [(r["surrogate"], float(r["peak"])) for r in pair] == [
        ("PiecewiseExp alpha=2", 1.0),
        ("PiecewiseQuadratic alpha=1", 1.0),
    ]
    assert [float(r["epochs to it"]) for r in pair] == [3.0, 3.0], "0.95, which both reach"
    assert [float(r["skippable"]) for r in pair] == [0.0, 0.15]

    rho = {(r["shape"], r["with"]): float(r["rho"]) for r in table(folder, "correlation")}
    # mean accuracies 0.96, 0.92, 0.62, 0.80 against supports 4.6, 1.98, 0.99, 1.99: ranks 4 3 1 2 and 4 2 1 3
    assert rho["support", "test accuracy"] == pytest.approx(0.8)
    zeros = [r for r in table(folder, "sparsity") if r["layer"] == "neuron1" and r["epoch"] == "3"]
    assert [float(r["potentials"]) for r in zeros] == [0.0, 0.3, 0.8, 0.2]
    figures = {p.name for p in (folder / "figures").iterdir()}
    assert figures == {"surrogates.png", "learning.png", "accuracy.png", "sparsity.png"}


def test_runs_that_differ_in_more_are_no_seeds(snnexp: Callable[..., Done], sweep: Path) -> None:
    config = OmegaConf.load(sweep / "1" / "config.yaml")
    OmegaConf.save(OmegaConf.merge(config, {"model": {"hidden": 16}}), sweep / "1" / "config.yaml")
    done = snnexp(*SMALL, "task=compare_surrogates", f"task.sweep={sweep}", "tracking=none")
    assert done.code == 1
    assert "its runs differ in more than surrogate and seed, in model.hidden" in done.err


def test_a_folder_without_runs_is_refused(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    done = snnexp(*SMALL, "task=compare_surrogates", f"task.sweep={tmp_path}", "tracking=none")
    assert done.code == 1
    assert "there are no finished trainings in that folder" in done.err
