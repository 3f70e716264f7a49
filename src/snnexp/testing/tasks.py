"""The contract of a task, through the command line."""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from snnexp.build import build
from snnexp.config import GROUPS
from snnexp.session import Session
from snnexp.task.base import Task


class TaskContract:
    """`command`: overrides that run a small task; `config_dir`: a folder of YAML groups beside snnexp's own, or None.

    The task is run in a temporary folder, without MLflow. It must be `recorded`. Override `kept` to check more of the
    files that a run leaves.
    """

    command: Sequence[str]
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

    def kept(self, run: Path, result: dict[str, float]) -> None:
        """Check the folder of the finished run, and its result. Does nothing unless overridden."""

    def test_a_run_keeps_its_result_which_has_the_objectives(self, tmp_path: Path) -> None:
        assert self.run(tmp_path / "outputs") == 0
        (run,) = (path.parent for path in tmp_path.glob("outputs/runs/*/*/run.json"))
        result = json.loads((run / "result.json").read_text())
        assert result
        assert all(isinstance(value, int | float) and not math.isinf(value) for value in result.values())
        config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
        task: Task = build("task", config, Task)
        assert set(task.groups) <= set(GROUPS)
        objectives = set(task.objectives(Session(config, {})))
        assert all(name.startswith("val/") for name in objectives), "a sweep must not choose by test data"
        assert objectives <= set(result), f"the result lacks {', '.join(sorted(objectives - set(result)))}"
        if "trainer" in task.groups:
            pickle.dumps(task)  # data-parallel ranks get the record, and with it the task
        self.kept(run, result)

    def test_it_refuses_an_objective_that_it_does_not_give(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path / "outputs", "objective=val/nonsense") == 1
        assert "objective=val/nonsense is not allowed" in capfd.readouterr().err
        assert not list(tmp_path.glob("outputs/runs/*/*/run.json"))
