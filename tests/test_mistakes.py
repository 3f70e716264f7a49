"""Thirty mistakes of beginners, each with the advice that the command gives."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Done
from snnexp.mistakes import near

TRAINER = " The keys of trainer: epochs, batch_size, eval_batch_size, monitor, patience, gradient_clip, accelerator"
MISTAKES = [
    # misspelt keys
    ("trainer.epoch=3", "trainer.epoch is not a key. Did you mean trainer.epochs=3?" + TRAINER),
    (
        "+trainer.epoch=3",
        "trainer.epoch is not allowed: snnexp.training.Trainer has no argument epoch. Did you mean tra",
    ),
    ("surogate=sine", "surogate is not a key. Did you mean surrogate=sine? All keys: snnexp --help"),
    ("optimiser=sgd", "optimiser is not a key. Did you mean optimizer=sgd?"),
    ("trainr.epochs=3", "trainr.epochs is not a key. Did you mean trainer.epochs=3?"),
    ("Seed=3", "Seed is not a key. Did you mean seed=3?"),
    # keys without their group, in another group, and by other names
    ("epochs=3", "epochs is not a key. Did you mean trainer.epochs=3?"),
    ("epoch=3", "epoch is not a key. Did you mean trainer.epochs=3?"),
    ("alpha=2", "alpha is not a key. Did you mean neuron.alpha=2 or surrogate.alpha=2?"),
    ("lr=0.1", "lr is not a key. Did you mean optimizer.lr=0.1?"),
    ("trainer.lr=0.1", "trainer.lr is not a key. Did you mean optimizer.lr=0.1?" + TRAINER),
    ("learning_rate=0.1", "learning_rate is not a key. Did you mean optimizer.lr=0.1?"),
    ("T=8", "T is not a key. Did you mean timesteps=8?"),
    ("device=cuda", "device is not a key. Did you mean trainer.accelerator=cuda?"),
    (
        "neuron.tau=2",
        "neuron.tau is not a key. The keys of neuron: alpha, threshold, reset, reset_value, detach_reset,",
    ),
    (
        "dataset.root=DIR",
        "dataset.root is not a key of this dataset. Of the options of dataset only these have it: cifar10, cifar100, ",
    ),
    ("hydra.sweeper.trials=9", "hydra.sweeper.trials is not a key. Did you mean hydra.sweeper.n_trials=9? The keys of"),
    ("optimizer.lr=${foo}", "a value refers to another key with ${...}: Interpolation key 'foo' not found"),
    # options
    ("surrogate=sin", "surrogate=sin is not allowed. Did you mean surrogate=sine? It must be one of atan, determinist"),
    ("neuron=LIF", "neuron=LIF is not allowed. Did you mean neuron=lif or neuron=plif or neuron=if? It must be one of"),
    ("dataset=cifar", "dataset=cifar is not allowed. Did you mean dataset=cifar10 or dataset=cifar100? It must be one"),
    (
        "model=lif",
        "model=lif is not allowed. Did you mean neuron=lif? It must be one of cifarnet, convnet, custom, mlp",
    ),
    (
        "task=training",
        "task=training is not allowed. Did you mean task=train? It must be one of calibrate, compare_sur",
    ),
    ("-m +sweep=surrogate_alfa", "+sweep=surrogate_alfa is not allowed. Did you mean +sweep=surrogate_alpha or "),
    (
        "surrogate=[sine,atan]",
        "surrogate=[sine,atan] is not allowed: it must be one option; a run for each: snnexp -m ",
    ),
    # several values
    ("seed=0,1", "seed=0,1 are several values: a run for each needs -m: snnexp -m seed=0,1; a list has brackets and q"),
    ("seed=0, 1", "seed=0, ends with a comma: no space after the comma: snnexp seed=0,1"),
    ("timesteps=[4, 8]", "timesteps=[4, is cut off at a space: quote the list: 'timesteps=[4,8]'"),
    # words
    ("train", "train is not KEY=VALUE. Did you mean task=train?"),
    ("sine", "sine is not KEY=VALUE. Did you mean surrogate=sine?"),
    ("trian", "trian is not KEY=VALUE, such as task=train. Did you mean task=train"),
    ("snnexp task=train", "snnexp stands twice: leave out the second"),
    ("help", "help is not KEY=VALUE: for help: snnexp --help"),
    ("trainer.epochs", "trainer.epochs has no value: trainer.epochs=VALUE"),
    ("--seed=3", "--seed=3 is not an option: keys have no dashes, and an equals sign. Did you mean seed=3?"),
    (
        "--epochs 3",
        "--epochs is not an option: keys have no dashes, and an equals sign. Did you mean trainer.epochs=3?",
    ),
    # signs
    ("surrogate.alpha = 2", "no spaces around the equals sign: snnexp surrogate.alpha=2"),
    ("surrogate.alpha= 2", "no spaces around the equals sign: snnexp surrogate.alpha=2"),
    ("surrogate.alpha =2", "no spaces around the equals sign: snnexp surrogate.alpha=2"),
    ("surrogate:sine", "surrogate:sine has a colon in place of the equals sign: snnexp surrogate=sine"),
    ("surrogate==sine", "surrogate==sine has two equals signs: snnexp surrogate=sine"),
    ("dataset=mnist dataset.root=my data", "data is not KEY=VALUE: quote a value with spaces: snnexp 'dataset.root=my"),
    (
        "dataset=mnist dataset.root=/a/(b)",
        "dataset.root=/a/(b) cannot be read: quote the value for snnexp and the shell: snnexp \"dataset.root='/a/(b)'",
    ),
    ("+seed=3", "seed exists already: leave out the + before it"),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_gets_its_advice(line: str, said: str, snnexp: Callable[..., Done]) -> None:
    done = snnexp(*line.split(" "))
    assert done.code == 1
    lines = [text for text in done.err.splitlines() if not text.startswith("Error executing job with overrides")]
    assert lines[0].startswith(said), done.err
    assert len(lines) == 1, "and nothing else is said"
    assert not done.runs()


def test_the_advice_can_be_typed(snnexp: Callable[..., Done]) -> None:
    for word in ("dataset.root='/a/(b)'", "dataset.root=my data"):
        (typed,) = shlex.split(f'"{word}"')
        assert "my data" in typed or "(b)" in typed
        assert f"root: {typed.partition('=')[2].strip(chr(39))}" in snnexp("--cfg", "job", "dataset=mnist", typed).out


def test_jobs_of_a_sweep_are_advised_too(snnexp: Callable[..., Done]) -> None:
    done = snnexp("-m", "surrogate=sine,atn")
    assert done.code == 1
    assert "surrogate=atn is not allowed. Did you mean surrogate=atan?" in done.err
    assert "HYDRA" not in done.err


def test_options_and_keys_of_ones_own(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "surrogate"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: snnexp.surrogate.sine.Sine\nalpha: 1.0\n")
    own = ("--config-dir", str(tmp_path / "conf"))
    assert "Did you mean surrogate=mine?" in snnexp(*own, "surrogate=mime").err
    assert "The keys of surrogate: alpha" in snnexp(*own, "surrogate=mine", "surrogate.alhpa=1").err


def test_a_programming_error_keeps_its_traceback_without_hydras_frames(
    snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> None:
        raise ZeroDivisionError("in a test")

    monkeypatch.setattr("snnexp.session.Session.check", broken)
    done = snnexp("tracking=none")
    assert done.code == 1
    assert "ZeroDivisionError: in a test" in done.err
    assert "hydra/" not in done.err
    assert "HYDRA_FULL_ERROR" not in done.err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ZeroDivisionError):
        snnexp("tracking=none")


def test_misspellings() -> None:
    assert near("epoch", ["epochs", "seed"]) == ["epochs"]
    assert near("Sine", ["sine", "sigmoid"]) == ["sine"]
    assert near("xyz", ["epochs"]) == []
