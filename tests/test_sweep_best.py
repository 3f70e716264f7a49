"""The best run of a sweep, as an experiment file and as the command that is printed for it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from conftest import SMALL, Done
from forked import Forked
from hydra_plugins.snnexp_optuna import _report  # after conftest, in which Hydra finds its plugins
from hydra_plugins.snnexp_optuna._space import space

TINY = (*SMALL, "trainer.epochs=1", "model.hidden=8", "timesteps=2", "tracking=none")
SURROGATE = """
from snnexp.surrogate.base import Surrogate

class Mine(Surrogate):
    def __init__(self, width=1.0, spiking=True):
        super().__init__(spiking=spiking, width=width)

    def primitive(self, x):
        return (x / self.width).sigmoid()

    def derivative(self, x):
        return (-(x / self.width).square()).exp()
"""


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_report, "_figures", lambda study, names, folder: None)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder of a user: a package with a surrogate, its YAML, and presets, in a folder whose name needs quotes."""
    files = {
        "my_lab/mine.py": SURROGATE,
        "my conf/surrogate/mine.yaml": "# of my own\n_target_: my_lab.mine.Mine\nwidth: 1.0\n",
        "my conf/preset/wide.yaml": "# @package _global_\nmodel:\n  hidden: 9\n",
        "my conf/preset/slow.yaml": "# @package _global_\ntimesteps: 3\nmodel:\n  hidden: 7\n",
        "my conf/experiment/best.yaml": "# @package _global_\nnothing: of the sweep's\n",
    }
    for name, text in files.items():
        (tmp_path / "lab" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lab" / name).write_text(text)
    return tmp_path / "lab"


def sweep(folder: Path, environment: dict[str, str], *arguments: str) -> Done:
    """Run the sweep in the user's folder, with relative paths of the user's parts."""
    places = {name: value for name, value in environment.items() if name != "SNNEXP_TRUSTED"}
    given = places | {"PYTHONPATH": ".", "SNNEXP_TRUSTED": "my_lab"}
    child = Forked(main_here, "snnexp", "-m", "--config-dir", "my conf", *arguments, folder=folder, environment=given)
    out, err = child.communicate()
    assert child.returncode == 0, err
    return Done(0, out, err, Path(environment["SNNEXP_OUTPUTS"]))


def main_here() -> None:
    """Run the command line, with the packages that PYTHONPATH names, as an interpreter of its own would."""
    from snnexp.run import main

    sys.path[:0] = [str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    main()


def as_printed(text: str, folder: Path) -> Forked:
    """Run the command that `text` offers, from `folder` and without any of the sweep's environment."""
    (line,) = re.findall(r"run it with `?\((cd .*)\)`?$", text, re.M)
    cd, to, then, *words = shlex.split(line)
    assert (cd, then) == ("cd", "&&")
    program = next(n for n, word in enumerate(words) if Path(word).name == "snnexp" and "=" not in word)
    assert words[program] in ("snnexp", shutil.which("snnexp") or str(Path(sys.executable).with_name("snnexp")))
    given = dict(word.split("=", 1) for word in words[:program])
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("SNNEXP_")}
    arguments = ["snnexp", *words[program + 1 :]]
    return Forked(main_here, *arguments, folder=folder / to, environment=clean | given)


@pytest.mark.parametrize("study", [False, True], ids=["grid", "study"])
def test_the_printed_command_runs_with_the_users_own_surrogate(
    environment: dict[str, str], tmp_path: Path, lab: Path, study: bool
) -> None:
    studied = ["hydra.sweeper.n_trials=2"] * study
    done = sweep(lab, environment, *TINY, "surrogate=mine", "surrogate.width=0.5,2.5", *studied)
    results = [json.loads(path.read_text()) for path in done.outputs.glob("multirun/*/*/*/result.json")]
    (line,) = re.findall(r"run it with (.*)", done.out)
    assert line.startswith(f"(cd {shlex.quote(str(lab))} && PYTHONPATH=. SNNEXP_CACHE=")
    assert re.search(r" SNNEXP_TRUSTED=my_lab (\S*/)?snnexp --config-dir ", line)
    assert f"file://{lab}/my conf" in line
    assert line.endswith(" experiment=best)")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    child = as_printed(done.out, elsewhere)
    assert child.wait() == 0, child.output()[1]
    assert len(results) == 2
    best = max(results, key=lambda result: result["val/accuracy"])
    again = done.result()
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in best.items() if k != "seconds"}


@pytest.mark.parametrize("study", [False, True], ids=["grid", "study"])
def test_an_added_group_and_a_deleted_key_are_in_the_best_experiment(
    environment: dict[str, str], lab: Path, study: bool
) -> None:
    """Earlier, a study with an added group ended with exit status 1, a grid without its summary."""
    studied = ["hydra.sweeper.n_trials=2"] * study
    tiny = [argument for argument in TINY if not argument.startswith("model.hidden")]
    done = sweep(lab, environment, *tiny, "+preset=wide,slow", "~surrogate.alpha", *studied)
    assert "UserWarning" not in done.err
    (folder,) = done.outputs.glob("multirun/*/*")
    best = yaml.safe_load((folder / "experiment" / "best.yaml").read_text())
    assert best["defaults"][0]["/preset"] in ("wide", "slow")
    assert {"override /surrogate": None} in best["defaults"]
    assert list(best["surrogate"]) == ["_target_"]
    child = as_printed(done.out, folder)
    assert child.wait() == 0, child.output()[1]
    (run,) = done.runs()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["hidden"] == {"wide": 9, "slow": 7}[best["defaults"][0]["/preset"]]
    assert list(config["surrogate"]) == ["_target_"]
    results = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    assert done.result()["val/accuracy"] == max(result["val/accuracy"] for result in results)


def test_a_task_that_is_written_out_in_full_is_called_by_its_class(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "defaults: [{override /task: null}]\ntask: {_target_: snnexp.task.train.Train}\n"
    (tmp_path / "experiment" / "full.yaml").write_text(f"# @package _global_\n{text}")
    done = snnexp("--config-dir", str(tmp_path), *TINY, "experiment=full")
    assert done.code == 0, done.err
    assert "Train: two_layer on digits_saccade, seed 0" in done.out


def test_a_deleted_key_can_be_added_again_and_vary(snnexp: Callable[..., Done]) -> None:
    deleted = ("~surrogate.alpha", "+surrogate.alpha=1.0,2.0")
    done = snnexp("-m", *TINY, *deleted)
    assert done.code == 0, done.err
    assert "best: alpha=" in done.out
    parser = OverridesParser.create()
    searched, fixed = space({}, parser.parse_overrides(list(deleted)), parser, str, lambda *_: {})
    assert fixed == ["~surrogate.alpha"]
    assert [dimension.key for dimension in searched.dimensions] == ["+surrogate.alpha"]
