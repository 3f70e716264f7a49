"""Where a sweep begins: ranges of the options' own files, pairs and grids in YAML, and points to start with."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import SMALL, Done
from hydra_plugins.snnexp_optuna import _report  # after conftest, in which Hydra finds its plugins
from test_sweeps import app, calls, study

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


def test_a_grid_in_yaml_with_values_that_belong_together(snnexp: Callable[..., Done]) -> None:
    tiny = [text for text in TINY if "pruner" not in text]
    done = snnexp("-m", *tiny, "+sweep=surrogate_lab", "seed=0", "tracking=none")
    assert done.code == 0, done.err
    (table,) = done.outputs.glob("multirun/*/*/summary.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    found = {(row["surrogate"], float(row["surrogate.alpha"])) for row in rows}
    assert found == {("sigmoid", 4.0), ("atan", 2.0), ("sine", 1.0), ("power", 0.5)}
    assert len(list(done.outputs.glob("multirun/*/*/*/result.json"))) == 4


PAIRS = """# @package _global_
hydra:
  sweeper:
    space:
      x,y: [[1, 2], [3, 4]]
      text: choice(a, b)
      noise:
        x:
          3: choice(5, 6)
"""


def test_pairs_are_one_parameter_of_a_study_or_grid(tmp_path: Path) -> None:
    file = tmp_path / "sweep" / "pairs.yaml"
    file.parent.mkdir()
    file.write_text(PAIRS)
    begun = (f"hydra.searchpath=[file://{tmp_path}]", "+sweep=pairs")
    app(tmp_path, *begun)
    assert sorted(calls(tmp_path)) == [*(f"1 plain '{t}'" for t in "ab"), *(f"3 plain '{t}'" for t in "aabb")]
    app(tmp_path, *begun, "x=2", "y=choice(0,1)", "text=c")
    assert calls(tmp_path)[6:] == ["2 plain 'c'"] * 2
    sampler = "hydra.sweeper.sampler={_target_:optuna.samplers.BruteForceSampler}"
    app(tmp_path, *begun, "hydra.sweeper.n_trials=9", sampler)
    assert sorted(trial.value for trial in study(tmp_path).trials) == [-5, -5, -5, -5, -3, -3]
    file.write_text(PAIRS.replace("[3, 4]", "[3]"))
    done = app(tmp_path, *begun, check=False)
    assert "space: x,y=[[1, 2], [3]] is not allowed: 2 keys together need a list of lists of 2 values" in done.err


def test_a_study_starts_with_the_points_that_it_is_given(tmp_path: Path) -> None:
    space = (
        "x=interval(0,4)",
        "kind=choice(plain,other)",
        "++hydra.sweeper.space={noise:{kind:{other:'choice(5,6)'}}}",
        "hydra.sweeper.n_trials=4",
    )
    start = "hydra.sweeper.start=[{x:2,kind:plain},{x:3.5,kind:other,noise:6}]"
    for _ in range(2):  # the same command runs nothing again
        app(tmp_path, *space, start)
        trials = study(tmp_path).trials
        assert len(trials) == 4
    noise = "noise (kind=other)"
    assert [trial.params for trial in trials[:2]] == [
        {"x": 2.0, "kind": "plain"},
        {"x": 3.5, "kind": "other", noise: 6},
    ]
    assert trials[0].value == 0
    for point, said in {
        "{x:5,kind:plain}": "x=5 is not allowed: it is not in the search space",
        "{x:1}": "has no value for kind",
        "{x:1,kind:plain,noise:5}": "has a value for noise, which is not sampled there",
        "{x:1,kind:odd}": "kind=odd is not allowed",
        "3": "it must be a list of points",
    }.items():
        refused = app(tmp_path, *space, f"hydra.sweeper.start=[{point}]", check=False)
        assert said in refused.err
    assert len(calls(tmp_path)) == 4
