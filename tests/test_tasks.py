"""The tasks beside training, through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from conftest import SMALL, Done
from snnexp.journal import Journal


def test_the_command_line_sends_what_was_kept_back(snnexp: Callable[..., Done]) -> None:
    """A run of the real command whose store was moved away at the end: `task=sync` sends the rest."""
    done = snnexp(*SMALL, "trainer.epochs=1")
    assert done.code == 0, done.err
    (folder,) = done.runs()
    Journal(folder).note(sent=0)  # as if nothing had been acknowledged
    again = snnexp("task=sync")
    assert again.code == 0, again.err
    assert "records of 1 runs" in again.out
    client = MlflowClient(f"sqlite:///{done.outputs / 'mlflow.db'}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(client.get_metric_history(run.info.run_id, "val/accuracy")) == 1, "sent twice, stored once"
    refused = snnexp("task=sync", f"task.run_dir={done.outputs}")
    assert refused.code == 1
    assert "nothing was tracked in that folder" in refused.err


@pytest.mark.slow
def test_the_ui_answers_on_the_loopback_address(snnexp: Callable[..., Done], ui: Callable[[Path], int]) -> None:
    assert "nothing was logged yet" in snnexp("task=ui").err
    done = snnexp(*SMALL, "trainer.epochs=1")
    assert done.code == 0
    port = ui(done.outputs)
    listening = Path("/proc/net/tcp").read_text().split()
    assert f"0100007F:{port:04X}" in listening
    assert f"00000000:{port:04X}" not in listening
    taken = snnexp("task=ui", f"task.port={port}")
    assert f"task.port={port} is taken" in taken.err
