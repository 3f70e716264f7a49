"""The origin of a run: a repetition uses the threads that it used, and a resumption keeps the first origin."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from conftest import SMALL, Done
from hydra_plugins.snnexp_optuna import _report  # after conftest, in which Hydra finds its plugins
from snnexp import record
from snnexp.origin import differences, resumed

TINY = (*SMALL[:-1], "trainer.epochs=1", "model.hidden=8", "timesteps=2", "tracking=none", "trainer.threads=null")


@pytest.mark.parametrize(
    "more", [("hydra.sweeper.n_trials=1", "surrogate.alpha=choice(1.0,2.0)"), ("surrogate.alpha=1.0,2.0",)]
)
def test_the_best_is_run_with_the_threads_of_its_job(
    more: tuple[str, ...], snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_report, "_figures", lambda study, names, folder: None)
    monkeypatch.setattr(record, "THREADS", 3)  # as in a worker of joblib, which has its share of the cores
    done = snnexp("-m", *TINY, *more)
    assert done.code == 0, done.err
    (folder,) = done.outputs.glob("multirun/*/*")
    assert json.loads((folder / "0" / "origin.json").read_text())["threads"] == 3
    assert "\n  threads: 3\n" in (folder / "experiment" / "best.yaml").read_text()
    if "n_trials" in more[0]:
        again = snnexp("task=rerun", f"task.run={folder / '0'}", "tracking=none")
        assert again.code == 0, again.err
        (new,) = again.runs()
        assert "\n  threads: 3\n" in (new / "config.yaml").read_text()


def test_a_resumed_run_keeps_its_first_origin() -> None:
    code, later = {"code": {"version": "1"}, "python": "3.11"}, {"code": {"version": "2"}, "python": "3.11"}
    first = {"choices": {"task": "train"}, "threads": 2, **code}
    assert resumed(first, code) == first
    once = resumed(first, later)
    assert once == first | {"resumed": [later]}
    assert resumed(once, later) == once
    assert resumed(once, code)["resumed"] == [later, code]
    assert differences(once, code) == [
        "the run was resumed with other code or packages (see `resumed` in its origin.json)"
    ]
