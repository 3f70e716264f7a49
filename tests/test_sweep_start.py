"""Where a sweep begins: ranges of the options' own files, pairs and grids in YAML, and points to start with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import SMALL, Done
from hydra_plugins.snnexp_optuna import _report  # after conftest, in which Hydra finds its plugins

TINY = (*SMALL, "trainer.epochs=1", "model.hidden=8", "timesteps=2", "hydra.sweeper.pruner=null")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_report, "_figures", lambda study, names, folder: None)


def test_an_own_surrogate_is_swept_by_name_in_the_range_of_its_file(
    snnexp: Callable[..., Done], tmp_path: Path
) -> None:
    own = tmp_path / "conf" / "surrogate" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @sweep.alpha interval(6,7)\n_target_: spikingjelly.activation_based.surrogate.ATan\nalpha: 2.0\n")
    begun = ("--config-dir", str(own.parents[1]), "-m", *TINY, "tracking=none", "hydra.sweeper.n_trials=2")
    alone = snnexp(*begun, "+sweep=surrogate_alpha", "surrogate=mine")
    assert alone.code == 0, alone.err
    trials = json.loads(next(alone.outputs.glob("multirun/*/*/study.json")).read_text())["trials"]
    assert [6 <= trial["params"]["surrogate.alpha"] <= 7 for trial in trials] == [True] * 2
    among = snnexp(*begun, "+sweep=surrogate_choice", "surrogate=mine,power", "hydra.sweeper.sampler=null")
    assert among.code == 0, among.err
    (found,) = (
        json.loads(p.read_text()) for p in among.outputs.glob("multirun/*/*/study.json") if "choice" in p.read_text()
    )
    ranges = {"mine": (6, 7), "power": (0.05, 0.95)}
    for trial in found["trials"]:
        chosen = trial["params"].pop("surrogate")
        low, high = ranges[chosen]
        assert low <= trial["params"][f"surrogate.alpha (surrogate={chosen})"] <= high
    own.write_text(own.read_text().replace("interval(6,7)", "interval(6, 7)"))
    spaced = snnexp(*begun, "+sweep=surrogate_alpha", "surrogate=mine")
    assert spaced.code == 1
    assert "Traceback" not in spaced.err
    assert "interval(6, 7)" in spaced.err
