"""The contract of a task, through the command line."""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf

from snnexp.config import GROUPS
from snnexp.task.base import Task

SMALL = ("trainer.epochs=1", "model.hidden=16", "timesteps=2", "trainer.threads=1")


class TaskContract:
    """`command`: overrides that run a small task; `config_dir`: a folder of YAML groups beside snnexp's own, or None.

    The task is run in a temporary folder, without MLflow.
    """

    command: ClassVar[tuple[str, ...]]
    config_dir: ClassVar[str | Path | None] = None

    def run(self, outputs: Path, *more: str) -> int:
        """Run the command with its outputs in `outputs` and return the exit status."""
        from snnexp.run import main

        where = ("--config-dir", str(self.config_dir)) if self.config_dir else ()
        arguments = ["snnexp", *where, *self.command, "tracking=none", f"outputs_dir={outputs}", *more]
        GlobalHydra.instance().clear()
        try:
            with patch.object(sys, "argv", arguments), patch.dict(os.environ):
                main()
        except SystemExit as stop:
            return int(stop.code or 0)
        finally:
            GlobalHydra.instance().clear()
        return 0

    def made(self, run: Path) -> Task:
        """Return the task of a finished run."""
        config = OmegaConf.load(run / "config.yaml")
        task: Task = instantiate(config.task, _convert_="all")
        return task

    def test_a_run_keeps_what_it_gives(self, tmp_path: Path) -> None:
        assert self.run(tmp_path / "outputs") == 0
        (run,) = (path.parent for path in tmp_path.glob("outputs/runs/*/*/run.json"))
        result = json.loads((run / "result.json").read_text())
        assert result
        assert all(isinstance(value, int | float) and not math.isinf(value) for value in result.values())
        task = self.made(run)
        assert isinstance(task, Task)
        assert set(task.groups) <= set(GROUPS)
        pickle.dumps(task)  # data-parallel ranks get the record, and with it the task

    def test_it_refuses_an_objective_that_it_does_not_give(self, tmp_path: Path) -> None:
        assert self.run(tmp_path / "outputs", "objective=val/nonsense") == 1
        assert not list(tmp_path.glob("outputs/runs/*/*/run.json"))
