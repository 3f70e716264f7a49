"""The tasks beside training, through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient

from conftest import SMALL, Done
from snnexp.journal import Journal
from snnexp.testing import TaskContract

ANN = ("model=convnet", "model.width=4", "dataset=digits", "neuron=relu", "loss=cross_entropy", "calibration.images=32")
ONCE = ("trainer.epochs=1", "trainer.threads=1")
CONVERTED = (*ANN, *ONCE, "timesteps=[2,4]", "task.val_images=20", "task.test_images=20", "task.layer_images=8")
COMMANDS = {  # the others stand under the contract in the tests of their subject
    "train": (*SMALL, "trainer.epochs=1"),
    "convert": ("task=convert", *CONVERTED),
    "calibrate": ("task=calibrate", *CONVERTED, "calibration=advanced"),
}


@pytest.mark.usefixtures("environment")
class TestTask(TaskContract):
    @pytest.fixture(autouse=True, params=COMMANDS)
    def _command(self, request: pytest.FixtureRequest) -> None:
        self.command = COMMANDS[request.param]


@pytest.mark.parametrize("task", ["compare_surrogates", "export", "report", "sync", "ui"])
def test_tasks_that_need_other_runs_refuse_such_an_objective_too(snnexp: Callable[..., Done], task: str) -> None:
    done = snnexp(f"task={task}", "objective=val/nonsense", *["task.sweep=x"] * (task == "compare_surrogates"))
    assert done.code == 1
    assert "objective=val/nonsense is not allowed" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["task=ui", "task.port=0"], "task.port=0 is not allowed: it must be an integer >= 1"),
        (["task=ui", "task.port=70000"], "task.port=70000 is not allowed: it must be at most 65535"),
        (["task=report", "task.port=70000"], "task.port=70000 is not allowed: it must be at most 65535"),
        (["task=dynamics", "task.layer_images=0"], "task.layer_images=0 is not allowed: it must be an integer >= 1"),
        (["task=fit_few_spike", "objective=val/nonsense"], "objective=val/nonsense is not allowed"),
        (["task=gradient_sparsity", "task.batch=0"], "task.batch=0 is not allowed: it must be an integer >= 1"),
        (["task=gradient_sparsity", "surrogate=sine", "surrogate.alpha=-1"], "surrogate.alpha=-1 is not allowed"),
        (["task=gradient_sparsity", "trainer.batch_size=0"], "trainer.batch_size=0 is not allowed"),
        (["task=gradient_sparsity", "neuron.threshold=0"], "neuron.threshold=0 is not allowed"),
        (["task=gradient_sparsity", "loss=cross_entropy", "loss.scale=0"], "loss.scale=0 is not allowed"),
    ],
)
def test_a_refusal_names_the_key_that_was_set(snnexp: Callable[..., Done], arguments: list[str], key: str) -> None:
    done = snnexp(*arguments)
    assert done.code == 1
    assert key in done.err
    assert "Traceback" not in done.err
    assert not done.runs()


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
    absent = {key for key in run.data.params if key.startswith(("conversion.", "calibration.", "mitigation."))}
    assert not absent, "these groups take no part in a training"
    assert len(run.data.params) == 62
    assert not set(run.data.tags) & {"conversion", "calibration", "mitigation"}
    refused = snnexp("task=sync", f"task.run_dir={done.outputs}")
    assert refused.code == 1
    assert "nothing was tracked in that folder" in refused.err


@pytest.mark.slow
def test_the_ui_answers_on_the_loopback_address(snnexp: Callable[..., Done], ui: Callable[..., str]) -> None:
    assert "nothing was logged yet" in snnexp("task=ui").err
    done = snnexp(*SMALL, "trainer.epochs=1")
    assert done.code == 0
    address = urlsplit(ui(done.outputs))
    port = address.port
    listening = Path("/proc/net/tcp").read_text().split()
    assert f"0100007F:{port:04X}" in listening
    assert f"00000000:{port:04X}" not in listening
    taken = snnexp("task=ui", f"task.port={port}")
    assert f"task.port={port} is taken" in taken.err
    there = snnexp("task=ui", f"tracking.uri=http://127.0.0.1:{port}")
    assert there.out.startswith(f"MLflow UI: {address.geturl()}  (this server has a UI of its own)")
