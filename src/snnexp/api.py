"""snnexp in Python and notebooks: `run` and `sweep` take the overrides of the command line and return the results."""

from __future__ import annotations

import html
import logging
import os
import re
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from snnexp.callbacks import close_grid
from snnexp.config import conf_dir, quoted
from snnexp.errors import UserError, explained
from snnexp.signals import held, interrupting
from snnexp.trust import guard

if TYPE_CHECKING:
    import pandas
    from torch import nn

MODEL = re.compile(r"model(?:_T(?P<T>\d+))?\.pt")


@dataclass(frozen=True)
class Result:
    """A finished run: its final `metrics`, its `folder`, and its `run_id` in MLflow (None with tracking=none)."""

    metrics: dict[str, float]
    folder: Path
    run_id: str | None

    @property
    def figures(self) -> dict[str, Path]:
        """The PNG files of the run by name, without their ending."""
        return {path.stem: path for path in sorted((self.folder / "figures").glob("*.png"))}

    @property
    def tables(self) -> dict[str, pandas.DataFrame]:
        """The tables of the run by name."""
        import pandas

        return {path.stem: pandas.read_csv(path) for path in sorted((self.folder / "tables").glob("*.csv"))}

    @cached_property
    def network(self) -> nn.Module:
        """The network of the run on the CPU; of conversions with a network for each T, that of the largest.

        Raises UserError if the task makes no network.
        """
        import torch

        found = {int(m["T"] or 0): path for path in self.folder.iterdir() if (m := MODEL.fullmatch(path.name))}
        if not found:
            raise UserError(f"{self.folder} has no network (model.pt): the task of this run makes none")
        made: nn.Module = torch.load(found[max(found)], map_location="cpu", weights_only=False)  # our own file
        return made.eval()

    def _repr_html_(self) -> str:
        """The metrics and figures, as a notebook shows them."""
        cells = [(html.escape(name), f"{value:.4g}") for name, value in self.metrics.items() if "_T" not in name]
        rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in cells)
        images = [(name, b64encode(path.read_bytes()).decode()) for name, path in self.figures.items()]
        drawn = "".join(f'<img alt="{name}" width="480" src="data:image/png;base64,{data}">' for name, data in images)
        return f"<table>{rows}</table>{drawn}<p>{html.escape(str(self.folder))}</p>"


def run(*overrides: str, config_dir: str | Path | None = None) -> Result:
    """Run one experiment in this process, as `snnexp key=value ...` does, and return its results.

    `config_dir` is a folder with groups of your own (`--config-dir`). Raises UserError for what the command line
    refuses, and KeyboardInterrupt after the run was saved.
    """
    outcomes: list[Result | Exception] = []

    def task(cfg: DictConfig) -> None:
        from snnexp.run import performed

        try:
            record, metrics = performed(cfg)
            outcomes.append(Result(dict(metrics), record.folder, record.tracker.run_id))
        except Exception as error:  # Hydra would print what is raised below
            outcomes.append(error)

    with _composing([], overrides, config_dir) as (hydra, given), interrupting():
        hydra.run("config", task, given, with_log_configuration=False)
        if isinstance(outcome := outcomes[0], Exception):
            raise outcome
    return outcome


def sweep(*overrides: str, config_dir: str | Path | None = None) -> pandas.DataFrame:
    """Run a sweep, as `snnexp -m key=value ...` does, and return a table.

    Of a grid: a row for each setting with mean and standard deviation over its seeds, the best first. Of a study: a row
    for each trial.

    Its attribute `attrs["folder"]` is the folder of the sweep. Raises as `run` does.
    """
    import pandas

    from snnexp.run import run as task

    with _composing(["-m"], overrides, config_dir) as (hydra, given), interrupting():
        cfg = hydra.compose_config("config", given, RunMode.MULTIRUN, with_log_configuration=False)
        folder = Path(str(cfg.hydra.sweep.dir)).absolute()
        here = [*given, f"hydra.sweep.dir={quoted(str(folder))}"]
        hydra.multirun("config", task.__wrapped__, here, with_log_configuration=False)
    written = next((path for name in ("summary.csv", "trials.csv") if (path := folder / name).exists()), None)
    if written is None:
        raise UserError(f"no job of the sweep has finished; {folder} has what they left")
    table = pandas.read_csv(written)
    table.attrs["folder"] = str(folder)
    return table


@contextmanager
def _composing(
    flags: list[str], overrides: tuple[str, ...], config_dir: str | Path | None
) -> Iterator[tuple[Hydra, list[str]]]:
    """Give Hydra and the overrides, and leave this process as it was: no global state, loggers or arguments of ours."""
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(f"{override!r} is not allowed: it must be a text such as 'trainer.epochs=3'")
    os.environ.setdefault("LOGURU_LEVEL", "WARNING")  # SpikingJelly logs its choices when it is imported
    guard()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    arguments = ["snnexp", *flags, *overrides]  # of the commands that are printed and stored
    try:
        with patch.object(sys, "argv", arguments), initialize_config_dir(conf_dir(), "snnexp", version_base="1.3"):
            GlobalHydra.instance().clear()
            yield Hydra.create_main_hydra2("snnexp", _search_path(config_dir)), list(overrides)
    except SystemExit as stop:  # a callback has printed why
        raise UserError("the command was refused: its message is above") from stop
    except UserError:
        raise
    except HydraException as error:
        raise UserError(str(error)) from error
    except Exception as error:
        raise (explained(error) or error) from error
    finally:
        with held():  # Hydra tells the parent run of a grid of success alone
            close_grid("KILLED" if isinstance(sys.exception(), KeyboardInterrupt) else "FAILED")
        root.handlers[:], root.level = handlers, level


def _search_path(config_dir: str | Path | None) -> ConfigSearchPath:
    """Return the folders of groups, as for `--config-dir`. Raises UserError if there is no such folder."""
    path = create_config_search_path(conf_dir())
    if config_dir is not None:
        if not (folder := Path(config_dir).expanduser().absolute()).is_dir():
            raise UserError(f"config_dir={config_dir} is not allowed: there is no such folder")
        path.prepend("command-line", f"file://{folder}", anchor="schema")
    return path
