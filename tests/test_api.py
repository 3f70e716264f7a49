"""snnexp in Python: results of runs, tables of sweeps, and a process that is left as it was."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import snnexp
from conftest import SMALL
from snnexp.callbacks import Grid
from snnexp.errors import UserError
from snnexp.timefold import TimeFold

QUICK = (*SMALL, "trainer.epochs=1", "tracking=none")


@pytest.fixture(autouse=True)
def _process_is_left_as_it_was(environment: dict[str, str]) -> object:
    GlobalHydra.instance().clear()
    logging.getLogger().setLevel(logging.ERROR)
    before = list(sys.argv), list(logging.getLogger().handlers)
    yield
    assert not GlobalHydra.instance().is_initialized()
    assert not HydraConfig.initialized()
    assert Grid.open is None
    assert (list(sys.argv), list(logging.getLogger().handlers)) == before
    assert "SNNEXP_SWEEP" not in os.environ
    assert logging.getLogger().level == logging.ERROR


@pytest.mark.usefixtures("store")
def test_a_run_gives_metrics_figures_tables_network_folder_and_id(tmp_path: Path) -> None:
    first = snnexp.run(*QUICK[:-1], "surrogate=sine")
    second = snnexp.run(*QUICK, "seed=1")
    assert first.folder.parents[2] == tmp_path / "outputs"
    assert first.folder != second.folder
    assert len(str(first.run_id)) == 32
    assert second.run_id is None
    assert 0 < first.metrics["test/accuracy"] <= 1
    assert first.metrics != second.metrics
    assert {"learning", "confusion", "rasters"} <= first.figures.keys()
    assert isinstance(first.network, TimeFold)
    assert first.network.sites()["neuron1"].surrogate.__class__.__name__ == "Sine"
    assert "<td>test/accuracy</td>" in first._repr_html_()
    assert first.tables == {}


def test_a_grid_gives_a_table(tmp_path: Path) -> None:
    table = snnexp.sweep(*QUICK, "surrogate=sine", "seed=0,1")
    assert list(table["n"]) == [2]
    assert {"val/accuracy", "val/accuracy std", "test/accuracy"} <= set(table.columns)
    assert Path(table.attrs["folder"]).parents[2] == tmp_path / "outputs"


@pytest.mark.slow
def test_a_study_gives_a_table() -> None:
    table = snnexp.sweep(*QUICK, "surrogate=sine", "surrogate.alpha=interval(0.5,2)", "hydra.sweeper.n_trials=2")
    assert list(table["trial"]) == [0, 1]
    assert {"val/accuracy", "surrogate.alpha"} <= set(table.columns)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("trainer.epochs=0",), "trainer.epochs=0 is not allowed: it must be an integer >= 1"),
        (("surrogate=nope",), "Could not find 'surrogate/nope'"),
        ((3,), "3 is not allowed: it must be a text such as 'trainer.epochs=3'"),
        (("hydra.sweeper.n_trials=2",), "the command was refused: its message is above"),
    ],
)
def test_refusals_are_exceptions(overrides: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as error:
        snnexp.run(*overrides)
    assert message in str(error.value)
    assert "Error executing job" not in capfd.readouterr().err


def test_a_grid_whose_jobs_are_refused_is_an_exception() -> None:
    with pytest.raises(UserError, match=r"trainer\.epochs=-1 is not allowed"):
        snnexp.sweep(*QUICK[:-2], "tracking=none", "trainer.epochs=-1,-2")


def test_own_groups_come_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "conf" / "surrogate").mkdir(parents=True)
    (tmp_path / "conf" / "surrogate" / "mine.yaml").write_text("_target_: snnexp.surrogate.sine.Sine\nalpha: 0.7\n")
    with pytest.raises(UserError, match="there is no such folder"):
        snnexp.run("surrogate=mine", config_dir=tmp_path / "nope")
    result = snnexp.run(*QUICK, "surrogate=mine", config_dir=tmp_path / "conf")
    assert result.network.sites()["neuron1"].surrogate.alpha == 0.7


def test_importing_it_loads_nothing() -> None:
    heavy = "[m for m in ('torch', 'hydra', 'mlflow', 'matplotlib', 'pandas') if m in sys.modules]"
    code = f"import sys, snnexp; assert not {heavy}; snnexp.run, snnexp.sweep; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        snnexp.nope  # noqa: B018
