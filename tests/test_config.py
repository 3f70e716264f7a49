"""Wrong input is refused at once, in the user's words, and without heavy imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from conftest import Done

REFUSED = [
    # (command line, what the message must name)
    (["neuron=nope"], ["neuron/nope", "lif", "plif"]),
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
    (["trainer.monitor=test/accuracy"], ["trainer.monitor=test/accuracy", "validation metric"]),
    (["objective=test/accuracy"], ["objective=test/accuracy", "validation metric"]),
    (["optimizer.lr=-1"], ["optimizer", "-1"]),
    (["optimizer.lr=fast"], ["optimizer.lr=fast", "a number"]),
    (["+optimizer.speed=1"], ["optimizer", "speed"]),
    (["loss=cross_entropy", "loss.scale=0"], ["loss.scale=0", "> 0"]),
    (["model.hidden=0"], ["model.hidden=0", ">= 1"]),
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
    assert not [r for r in done.runs() if (r / "last.pt").exists()], "nothing may have been trained"


def test_a_refused_value_leaves_no_folder(snnexp: Callable[..., Done]) -> None:
    done = snnexp("neuron.threshold=0")
    assert done.code == 1
    assert not [p for p in done.outputs.rglob("*") if p.is_file()]
    assert not list(done.outputs.glob("runs/*/*"))


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
