"""One rule for grids and studies: the direction of an objective follows from its name, unless it is set."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL, Done
from hydra_plugins.snnexp_optuna import _report  # after conftest, in which Hydra finds its plugins
from snnexp.errors import UserError
from snnexp.sweep.direction import directions
from snnexp.sweep.summary import Child, best

TINY = (*SMALL, "trainer.epochs=1", "model.hidden=8", "timesteps=2", "tracking=none")
RULES: list[tuple[Any, Any, list[str]]] = [
    ("val/accuracy", None, ["maximize"]),
    ("val/snn_accuracy_T4", None, ["maximize"]),
    ("val/loss", None, ["minimize"]),
    ("val/loss", "minimize", ["minimize"]),
    ("val/residual_T8", None, ["minimize"]),
    ("val/glossary", None, ["maximize"]),  # no word of it tells
    ("val/glossary", "minimize", ["minimize"]),
    (["val/accuracy", "val/spikes_per_sample"], None, ["maximize", "minimize"]),
    (["val/accuracy", "val/mine"], ["maximize", "minimize"], ["maximize", "minimize"]),
]


@pytest.mark.parametrize(("objective", "given", "expected"), RULES)
def test_a_direction_is_set_or_follows_from_the_name(objective: Any, given: Any, expected: list[str]) -> None:
    assert directions(objective, given) == expected


def test_a_direction_that_contradicts_the_name_is_refused() -> None:
    with pytest.raises(UserError) as refused:
        directions(["val/accuracy", "val/loss"], ["maximize", "maximize"])
    assert str(refused.value) == (
        "hydra.sweeper.direction=maximize is not allowed: the better val/loss is the lower one. Leave it out, or set "
        "minimize"
    )


def test_the_best_of_a_grid_follows_a_set_direction() -> None:
    found = [Child(n, str(n), {"x": str(n)}, {"val/mine": float(n)}, ()) for n in range(3)]
    assert [best(found, "val/mine")[0].number, best(found, "val/mine", lower=True)[0].number] == [2, 0]


@pytest.mark.parametrize("study", [False, True], ids=["grid", "study"])
def test_the_trial_with_the_lowest_loss_is_the_best(
    snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, study: bool
) -> None:
    monkeypatch.setattr(_report, "_figures", lambda study, names, folder: None)
    grid = "hydra.sweeper.sampler={_target_:optuna.samplers.GridSampler,seed:0}"
    studied = ["hydra.sweeper.n_trials=3", grid] * study
    sweep = ("-m", *TINY, "objective=val/loss", "optimizer.lr=1e-5,1e-2,1.0", *studied)
    done = snnexp(*sweep)
    assert done.code == 0, done.err
    losses = [json.loads(path.read_text())["val/loss"] for path in done.outputs.glob("multirun/*/*/*/result.json")]
    assert len(set(losses)) == 3
    assert f"val/loss {min(losses):.4g}" in next(done.outputs.glob("multirun/*/*/experiment/best.yaml")).read_text()
    refused = snnexp(*sweep, "hydra.sweeper.direction=maximize")
    assert refused.code == 1
    assert "hydra.sweeper.direction=maximize is not allowed: the better val/loss is the lower one" in refused.err
    assert len(list(Path(done.outputs).glob("multirun/*/*/*/result.json"))) == 3, "refused before its first job"


def test_a_surrogate_without_a_range_is_named_with_the_override_that_serves(
    snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_report, "_figures", lambda study, names, folder: None)
    sweep = ("-m", *TINY, "+sweep=surrogate_alpha", "surrogate=nonzero_sign_log_abs", "hydra.sweeper.n_trials=1")
    refused = snnexp(*sweep)
    assert refused.code == 1
    assert "no range for surrogate=nonzero_sign_log_abs: its YAML has no line such as '# @sweep.alpha " in refused.err
    (override,) = re.findall(r"give one on the command line, for example '(.*)'", refused.err)
    assert override == "surrogate.alpha=tag(log,interval(0.5,2))"
    done = snnexp(*sweep, override)
    assert done.code == 0, done.err
    assert "best: trial 0, surrogate.alpha=" in done.out
