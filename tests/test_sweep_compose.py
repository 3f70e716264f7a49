"""Configs of jobs that are composed once and copied: equal to those that Hydra composes for each job."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig

from conftest import ROOT, SMALL, Done
from hydra_plugins.snnexp_optuna import _compose
from hydra_plugins.snnexp_optuna._compose import Composer
from snnexp import config
from snnexp.trial.job import Address, Job

FILES = {
    "config.yaml": """
defaults:
  - _self_
  - net: a
  - opt@train.opt: x
  - deep/inner: one
  - pair: ${net}_${deep/inner}
  - experiment: null
seed: 0
text: ${net.name}-${seed}
list: [1, 2]
train: {epochs: 3, rate: 0.1, note: null}
hydra: {output_subdir: null, run: {dir: "out/${now:%f}"}}
""",
    "net/a.yaml": "name: a\nwidth: 4\nkeep: {p: 1}\n",
    "net/b.yaml": "name: b\nwidth: 8\nextra: ${seed}\n",
    "opt/x.yaml": "_target_: x\nlr: 0.1\n",
    "opt/y.yaml": "_target_: y\nmomentum: 0.9\n",
    "deep/inner/one.yaml": "value: 1\n",
    "deep/inner/two.yaml": "# @package _global_\nvalue: 2\n",
    "pair/a_one.yaml": "of: a and one\n",
    "pair/b_one.yaml": "of: b and one\n",
    "pair/a_two.yaml": "of: a and two\n",
    "experiment/e.yaml": "# @package _global_\ndefaults:\n  - override /net: b\nseed: 7\ntrain: {epochs: 9}\n",
}
# pieces of override lists: choices, values, additions, deletions, containers, what Hydra refuses
SMALL_PIECES = """
net=a net=b opt@train.opt=y deep/inner=two experiment=e ~experiment ~deep/inner +opt@other=x
~opt@train.opt seed=1 seed=null seed='a,b' seed=${train.epochs} train.epochs=5 train.rate=1e-3 train.rate=true
text='x,y'
net.width=3
net.keep.p=2 deep.inner.value=3 train.opt.lr=0.2 list=[3] list=[] train={epochs:4} net.keep={q:2} net={width:9} +new=1
+train.new=[1,2] ++seed=5 ++train.more.depth={a:1} ~train.note ~train.rate ~net.keep ~list nosuch=1 net=nosuch
train.nosuch=2 +seed=1 ~nosuch train.opt=1 ++net=b hydra.job.name=mine hydra.verbose=true
hydra.job.config.override_dirname.exclude_keys=[seed] hydra.job.env_copy=[HOME] hydra.sweep.subdir=${seed}
"""
REAL_PIECES = """
neuron=plif neuron=if surrogate=sine surrogate=power model=mlp optimizer=sgd task=convert ~experiment
experiment=nmnist_two_layer +sweep=surrogate_alpha neuron.threshold=0.75 surrogate.alpha=3.5 seed=4 trainer.epochs=2
objective=[val/loss,val/accuracy] timesteps=[2,4] checkpoint=null optimizer.lr=1e-3 trainer={epochs:3}
+optimizer.extra=2 ++model.hidden=16 ~trainer.threads dataset.nosuch=1 tracking=none dataset.root='a,b'
outputs_dir=elsewhere
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    for name, text in FILES.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.strip() + "\n")
    return str(tmp_path / "conf")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_compose, "_bases", {})
    monkeypatch.setattr(_compose, "_files", {})
    yield
    GlobalHydra.instance().clear()


def loaders(folder: str) -> tuple[ConfigLoaderImpl, Composer, DictConfig]:
    """Hydra's loader, ours, and the config of a multirun."""
    GlobalHydra.instance().clear()
    initialize_config_dir(folder, version_base="1.3", job_name="compose").__enter__()
    setup_globals()
    plain: Any = GlobalHydra.instance().config_loader()
    master = plain.load_configuration("config", ["hydra.verbose=false"], RunMode.MULTIRUN)
    return plain, Composer(plain.get_search_path()), master


def described(loader: ConfigLoaderImpl, master: DictConfig, overrides: list[str]) -> object:
    """The config, in its order and with its types and flags, or what is said against the overrides."""
    try:
        config = loader.load_sweep_config(master, overrides)
    except Exception as error:  # of any kind: they are compared
        return type(error), str(error), str(error.__cause__)
    return list(nodes(config))


def nodes(node: Any, name: str = "") -> Iterator[tuple[Any, ...]]:
    """Yield each node's place, value, types and flags, in the order of the config."""
    value, kept = node._value(), node._metadata
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    yield name, None if inner else value, kept.ref_type, kept.object_type, kept.optional, kept.flags
    for key, child in inner:
        yield from nodes(child, f"{name}.{key}")


def lists(pieces: str, count: int, seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    return [draw.sample(pieces.split(), draw.randint(0, 5)) for _ in range(count)]


def test_two_hundred_lists_of_overrides_compose_as_hydra_does(small: str) -> None:
    refused = set()
    for folder, made in ((small, lists(SMALL_PIECES, 170, 1)), (str(ROOT / "conf"), lists(REAL_PIECES, 30, 2))):
        plain, ours, master = loaders(folder)
        for number, overrides in enumerate(made):
            trial = Job("parent", ["seed"], str(number), trial=Address("sqlite:///x.db", "s", number, None, "val/a"))
            whole = [*overrides, trial.override]
            expected, found = (described(loader, master, whole) for loader in (plain, ours))
            assert found == expected, overrides
            refused.add(number) if isinstance(expected, tuple) else None
    assert 20 <= len(refused) <= 150, "some lists are refused, and for the same reason; many are not"


def test_the_files_are_read_once_for_each_choice_of_groups(small: str) -> None:
    _, ours, master = loaders(small)
    first = ours.load_sweep_config(master, ["net=b", "seed=1"])
    Path(small, "net", "b.yaml").write_text("name: changed\n")
    second = ours.load_sweep_config(master, ["net=b", "seed=2"])
    assert (first.net.name, second.net.name, first.seed, second.seed) == ("b", "b", 1, 2), "copies of one composition"
    second.net.width = 1
    assert ours.load_sweep_config(master, ["net=b"]).net.width == 8, "a job does not change another's config"


def test_a_fork_finds_what_its_parent_composed(snnexp: Callable[..., Done]) -> None:
    config._example.cache_clear()
    done = snnexp("-m", *SMALL, "trainer.epochs=1", "seed=0,1", "tracking=none", "hydra.sweeper.isolate=true")
    assert done.code == 0, done.err
    assert (config._example.cache_info().misses, config._example.cache_info().hits) == (1, 1)
    assert len(_compose._bases) == 1
