"""Wrong input is refused at once, in the user's words, and without heavy imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Done

REFUSED = [
    # (command line, what the message must name)
    (["neuron=nope"], ["neuron=nope is not allowed", "lif", "plif"]),
    (["neuron.treshold=1"], ["treshold"]),
    (["nonsense=1"], ["nonsense"]),
    (["neuron.threshold=0"], ["neuron.threshold=0", "> 0"]),
    (["neuron.threshold=abc"], ["neuron.threshold=abc", "a number"]),
    (["neuron.alpha=1.5"], ["neuron.alpha=1.5", "between 0 and 1"]),
    (["surrogate.alpha=0"], ["surrogate.alpha=0", "> 0"]),
    (["surrogate.alpha=-1"], ["surrogate.alpha=-1", "> 0"]),
    (["surrogate=sine", "surrogate.alpha=0"], ["surrogate.alpha=0", "> 0"]),
    (["surrogate=power", "surrogate.alpha=1"], ["surrogate.alpha=1", "between 0 and 1"]),
    (["timesteps=0"], ["timesteps=0", ">= 1"]),
    (["timesteps=2.5"], ["timesteps=2.5", "an integer"]),
    (["timesteps=[1,2]"], ["timesteps=[1, 2]", "an integer"]),
    (["seed=-1"], ["seed=-1", ">= 0"]),
    (["trainer.epochs=0"], ["trainer.epochs=0", ">= 1"]),
    (["trainer.batch_size=ten"], ["trainer.batch_size=ten", "an integer"]),
    (["trainer.precision=8"], ["trainer.precision=8", "text"]),
    (["trainer.precision=int8"], ["trainer.precision=int8", "32-true"]),
    (["trainer.accelerator=tpu"], ["trainer.accelerator=tpu", "cpu"]),
    (["trainer.precision=16-mixed"], ["trainer.precision=16-mixed", "on a CPU"]),
    (["trainer.monitor=test/accuracy"], ["trainer.monitor=test/accuracy", "val/accuracy, val/loss"]),
    (["trainer.monitor=val/nope"], ["trainer.monitor=val/nope", "val/accuracy, val/loss"]),
    (["objective=val/nope"], ["objective=val/nope", "val/accuracy, val/loss"]),
    (["objective=train/loss"], ["objective=train/loss", "validation metric"]),
    (["experiment=nope"], ["experiment=nope is not allowed"]),
    (["~optimizer"], ["optimizer=", "choose one of its options"]),
    (["~timesteps"], ["timesteps is missing"]),
    (["outputs_dir=null"], ["outputs_dir=None", "path of a folder"]),
    (["resume=[1]"], ["resume=[1]", "run directory"]),
    (["dataset.root=5", "dataset=nmnist"], ["dataset.root=5", "text"]),
    (["dataset.cache=null"], ["dataset.cache=None", "text"]),
    (["tracking.uri=5"], ["tracking.uri=5"]),
    (["tracking.experiment=2024"], ["tracking.experiment=2024", "quote it twice"]),
    (["+dataset.camera.blur=abc"], ["dataset.camera.blur=abc"]),
    (["+dataset.camera.seed=-1"], ["dataset.camera.seed=-1"]),
    (["dataset.timesteps=0"], ["dataset.timesteps=0"]),
    (["dataset.validation=2"], ["dataset.validation=2"]),
    (["cache_dir=/proc/nope"], ["cache_dir=/proc/nope"]),
    (["neuron=spikingjelly", "model.readout=potential"], ["model.readout=potential", "decay"]),
    (["objective=test/accuracy"], ["objective=test/accuracy", "validation metric"]),
    (["optimizer.lr=-1"], ["optimizer", "-1"]),
    (["optimizer.lr=fast"], ["optimizer.lr=fast", "a number"]),
    (["+optimizer.speed=1"], ["optimizer", "speed"]),
    (["loss=cross_entropy", "loss.scale=0"], ["loss.scale=0", "> 0"]),
    (["model.hidden=0"], ["model.hidden=0", ">= 1"]),
    (["+model.foo=1"], ["model", "foo"]),
    (["model.readout=vote"], ["model.readout=vote", "potential"]),
    (["dataset.validation=1.5"], ["dataset.validation=1.5"]),
    (["dataset=nmnist"], ["Train", "no-data/nmnist"]),
    (["tracking.uri=ftp://x"], ["tracking.uri", "ftp://x"]),
    (["resume=/nowhere"], ["resume=/nowhere", "no run"]),
]


@pytest.mark.parametrize(("arguments", "named"), REFUSED, ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_wrong_value_is_refused_by_name(snnexp: Callable[..., Done], arguments: list[str], named: list[str]) -> None:
    done = snnexp(*arguments)
    assert done.code == 1
    for words in named:
        assert words in done.err
    assert "Traceback" not in done.err
    assert not done.runs(), "no run may have been opened"


EARLY = [
    "dataset.validation=2",
    "neuron.threshold=0",
    "resume=/bad",
    "objective=val/x",
    "trainer.monitor=val/x",
    "optimizer.lr=-1",
]


@pytest.mark.parametrize("argument", EARLY)
def test_what_can_be_known_is_refused_before_data_are_prepared(
    snnexp: Callable[..., Done], tmp_path: Path, argument: str
) -> None:
    done = snnexp(argument, f"cache_dir={tmp_path / 'untouched'}")
    assert done.code == 1
    assert argument.split("=")[0] in done.err.replace("optimizer:", "optimizer.lr")
    assert not (tmp_path / "untouched").exists()


def test_other_steps_than_the_datasets_are_refused(snnexp: Callable[..., Done]) -> None:
    done = snnexp("timesteps=4", "dataset.timesteps=6")
    assert done.code == 1
    assert "timesteps=4 but the dataset gives 6" in done.err


def test_a_group_and_an_experiment_of_the_users_own_are_checked_like_ours(
    snnexp: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "conf" / "lab").mkdir(parents=True)
    (tmp_path / "conf" / "experiment").mkdir()
    (tmp_path / "conf" / "lab" / "week1.yaml").write_text("# @package _global_\ntrainer:\n  epochs: 1\n")
    (tmp_path / "conf" / "experiment" / "first.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /lab: week1\nmodel:\n  hidden: 8\ntimesteps: 4\n"
    )
    for chosen in ("+lab=week1", "experiment=first"):
        small = ("timesteps=4", "model.hidden=8", "tracking=none", "seed=2")
        assert snnexp("--config-dir", str(tmp_path / "conf"), chosen, *small).code == 0
        done = snnexp("--config-dir", str(tmp_path / "conf"), chosen, *small, "trainer.epochs=x")
        assert "trainer.epochs=x is not allowed" in done.err


def test_an_error_inside_a_users_code_keeps_its_traceback(
    snnexp: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "buggy.py").write_text("def data(size):\n    return None + size\n")
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "dataset" / "buggy.yaml").write_text("_target_: buggy.data\nsize: 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    done = snnexp("--config-dir", str(tmp_path / "conf"), "dataset=buggy")
    assert done.code == 1
    assert 'buggy.py", line 2' in done.err


def test_a_refused_value_leaves_no_folder(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    for argument in ("neuron.threshold=0", "model.hidden=0"):
        assert snnexp(argument).code == 1
        assert not [p for p in (tmp_path / "outputs").rglob("*") if p.is_file()]
        assert not list((tmp_path / "outputs").glob("runs/*/*"))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["neuron=nope"], ["trainer.epochs=x"], ["nonsense=1"], ["objective=test/x"]]
)
def test_answers_that_need_no_torch_do_not_import_it(environment: dict[str, str], arguments: list[str]) -> None:
    program = (
        "import sys; sys.argv = ['snnexp', *sys.argv[1:]]\n"
        "from snnexp.run import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('HEAVY', [m for m in ('torch', 'mlflow', 'optuna', 'matplotlib', 'spikingjelly') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_lists_groups_and_examples(snnexp: Callable[..., Done]) -> None:
    done = snnexp("--help")
    assert done.code == 0
    for words in ("surrogate: ", "sine", "neuron: ", "plif", "resume=true", "timesteps: 10"):
        assert words in done.out
