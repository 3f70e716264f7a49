"""`task=sweeps`: sweeps with their state, best and the command to go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from conftest import SMALL, Done
from test_sweeps import INTERVAL, app


def listed(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]


def test_sweeps_are_listed_with_state_best_and_command(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    app(tmp_path, INTERVAL, "hydra.sweeper.n_trials=4", "hydra.sweeper.study=mine", "seed=3")
    (path,) = (tmp_path / "outputs").rglob("sweep.json")
    known = json.loads(path.read_text())
    assert (known["status"], known["wanted"]) == ("FINISHED", 4)
    (done,) = listed(snnexp("task=sweeps").out)
    assert done[1:4] == ["mine", "finished", "4 of 4"]
    assert done[4].startswith("val/value -")
    path.write_text(json.dumps(known | {"status": "RUNNING", "wanted": 9}))  # as after kill -9 of a longer study
    said = snnexp("task=sweeps")
    assert listed(said.out)[0][2:4] == ["killed", "4 of 9"]
    assert f"go on with {path.parent.relative_to(tmp_path / 'outputs')}:\n  (cd {tmp_path}" in said.out
    assert "hydra.sweeper.n_trials=4" in said.out.split("go on with")[1]
    earlier = path.parents[1] / "earlier" / "sweep.json"
    earlier.parent.mkdir()
    earlier.write_text(json.dumps(known))
    assert len(listed(snnexp("task=sweeps").out)) == 1, "two starts of one sweep"
    path.write_text("{}")
    refused = snnexp("task=sweeps")
    assert refused.code == 1
    assert f"could not be read:\n  {path}: it lacks 'key'" in refused.err
    assert "Traceback" not in refused.err


def test_a_grid_is_listed_with_the_best_mean(snnexp: Callable[..., Done]) -> None:
    ran = snnexp("-m", *SMALL, "trainer.epochs=1", "model.hidden=8", "timesteps=2,4")
    assert ran.code == 0, ran.err
    done = snnexp("task=sweeps")
    assert done.code == 0, done.err
    (row,) = listed(done.out)
    assert row[1:4] == ["timesteps", "finished", "2 of 2"]
    assert row[4].startswith("val/accuracy 0.")
    (path,) = done.outputs.rglob("sweep.json")
    assert json.loads(path.read_text())["command"].endswith("timesteps=2,4 resume=true)")
