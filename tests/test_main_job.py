"""The main job, composed and run for real on small settings: what it leaves, and that it repeats itself."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from conftest import SMALL, Done
from snnexp.training import load_checkpoint


def client(done: Done) -> MlflowClient:
    return MlflowClient(f"sqlite:///{done.outputs / 'mlflow.db'}")


def all_runs(done: Done) -> list[mlflow.entities.Run]:
    c = client(done)
    return list(c.search_runs([e.experiment_id for e in c.search_experiments()]))


@pytest.fixture(scope="module")
def done(finished: Callable[..., Done]) -> Done:
    """A finished run, tracked; the tests only read it."""
    return finished(*SMALL)


def test_what_a_run_leaves(done: Done) -> None:
    (folder,) = done.runs()
    result = done.result()
    assert {"val/accuracy", "val/loss", "train/accuracy", "test/accuracy", "test/loss"} <= set(result)
    assert 0.5 < result["test/accuracy"] <= 1.0, "two epochs are enough for far more than chance (0.1)"
    figures = sorted(p.name for p in (folder / "figures").iterdir())
    drawn = ("accuracy_at_t", "confusion", "learning", "potentials", "rasters", "rates", "surrogate")
    assert figures == [f"{name}.png" for name in drawn]
    assert f"{result['test/accuracy']:.4f}" in done.out
    assert str(folder) in done.out.replace("\n", "")

    (run,) = all_runs(done)
    assert run.info.status == "FINISHED"
    assert run.data.params["neuron.threshold"] == "1.0"
    assert run.data.params["timesteps"] == "4"
    assert {run.data.tags[k] for k in ("task", "dataset", "model", "neuron", "surrogate")} == {
        "train",
        "digits_saccade",
        "two_layer",
        "lif",
        "atan",
    }
    assert run.data.metrics["test/accuracy"] == result["test/accuracy"]
    history = client(done).get_metric_history(run.info.run_id, "val/accuracy")
    assert [m.step for m in history] == [1, 2]
    at_t = client(done).get_metric_history(run.info.run_id, "test/accuracy_at_t")
    assert [m.step for m in at_t] == [1, 2, 3, 4]
    assert at_t[-1].value == result["test/accuracy"]
    artifacts = {a.path for a in client(done).list_artifacts(run.info.run_id)}
    assert {"config.yaml", "figures"} <= artifacts


def test_model_loads_through_mlflow_and_gives_the_tested_accuracy(done: Done) -> None:
    from snnexp.evaluate import evaluate
    from snnexp.loss import MSERate
    from snnexp.session import Session

    (folder,), (run,) = done.runs(), all_runs(done)
    mlflow.set_tracking_uri(f"sqlite:///{done.outputs / 'mlflow.db'}")
    model = mlflow.pytorch.load_model(f"runs:/{run.info.run_id}/model")
    config = json.loads((folder / "run.json").read_text())["config"]
    data = Session(config, {}).data
    again = evaluate(model, data.test, MSERate(), 256, torch.device("cpu"), 10)
    assert again.accuracy == done.result()["test/accuracy"]
    assert int(again.confusion.sum()) == len(data.test)
    assert int(again.confusion.diagonal().sum()) == round(again.accuracy * len(data.test))
    best = load_checkpoint(folder / "best.pt")
    assert all(torch.equal(best["model"][k], v) for k, v in model.state_dict().items())


def test_same_seed_same_metrics_other_seed_other_metrics(done: Done, snnexp: Callable[..., Done]) -> None:
    def history(folder: Path) -> list[dict[str, float]]:
        return list(load_checkpoint(folder / "last.pt")["history"])

    first = history(*done.runs())
    again = snnexp(*SMALL, "seed=0", "tracking=none").runs()
    assert history(*again) == first
    (other,) = set(snnexp(*SMALL, "seed=1", "tracking=none").runs()) - set(again)
    assert history(other) != first


@pytest.mark.parametrize(
    "arguments",
    [
        ["loss=cross_entropy", "loss.scale=5"],
        ["loss=cross_entropy", "model.readout=potential"],
        ["loss=tet", "model.readout=current"],
        ["neuron=plif", "optimizer=sgd", "scheduler=cosine", "trainer.gradient_clip=1"],
        ["neuron=if", "surrogate=sigmoid", "trainer.precision=bf16-mixed", "optimizer.lr=0.003"],
        ["neuron=plif", "model.readout=potential", "trainer.precision=64-true", "loss=cross_entropy"],
        ["surrogate=power", "optimizer=adamw", "scheduler=step", "dataset.values=binary"],
    ],
    ids=" ".join,
)
def test_every_kind_of_training_learns(snnexp: Callable[..., Done], arguments: list[str]) -> None:
    done = snnexp(*SMALL, *arguments, "tracking=none")
    assert done.code == 0, done.err
    assert done.result()["train/accuracy"] > 0.3, "chance is 0.1"


def test_early_stopping_keeps_the_best_epoch(snnexp: Callable[..., Done]) -> None:
    done = snnexp(*SMALL, "trainer.epochs=30", "trainer.patience=1", "optimizer.lr=0.03", "tracking=none")
    (folder,) = done.runs()
    history = load_checkpoint(folder / "last.pt")["history"]
    ranks = [(m["val/accuracy"], -m["val/loss"]) for m in history]
    best = load_checkpoint(folder / "best.pt")["epoch"]
    assert len(history) < 30
    assert best == len(history) - 2 == ranks.index(max(ranks))
    assert done.result()["val/accuracy"] == history[best]["val/accuracy"]


@pytest.mark.usefixtures("store")
def test_a_loss_that_explodes_is_an_error_with_advice(snnexp: Callable[..., Done]) -> None:
    done = snnexp(*SMALL, "optimizer=sgd", "optimizer.lr=1e38", "loss=cross_entropy", "model.readout=current")
    assert done.code == 1
    assert "optimizer.lr" in done.err
    assert "Traceback" not in done.err
    (run,) = all_runs(done)
    assert run.info.status == "FAILED"


@pytest.mark.usefixtures("store")
def test_two_ranks_train_as_one_with_twice_the_batch(done: Done, snnexp: Callable[..., Done]) -> None:
    """Their gradients are averaged, so two batches of 32 are one of 64 (but for the last, incomplete one)."""
    alone = load_checkpoint(done.runs()[0] / "last.pt")["history"]
    assert json.loads((done.runs()[0] / "run.json").read_text())["config"]["trainer"]["batch_size"] == 64
    done = snnexp(*SMALL, "trainer.devices=2", "trainer.accelerator=cpu", "trainer.batch_size=32")
    assert done.code == 0, done.err
    (run,) = all_runs(done)
    assert run.info.status == "FINISHED"
    losses = client(done).get_metric_history(run.info.run_id, "train/loss")
    assert [m.step for m in losses] == [1, 2], "one rank reports"
    assert [m.value for m in losses] == pytest.approx([m["train/loss"] for m in alone], rel=0.02)


def test_a_potential_readout_has_the_neurons_decay_and_counts_no_spikes(snnexp: Callable[..., Done]) -> None:
    quick = ("trainer.epochs=1", "tracking=none")
    done = snnexp(*SMALL, "neuron=plif", "neuron.alpha=0.25", "model.readout=potential", "loss=cross_entropy", *quick)
    model = torch.load(done.runs()[0] / "model.pt", weights_only=False)
    assert model.network.readout.alpha == pytest.approx(0.25)
    result = done.result()
    assert [key for key in result if key.startswith("test/rate/")] == ["test/rate/neuron1"]
    assert result["test/spikes_per_sample"] == pytest.approx(result["test/rate/neuron1"] * 32 * 4)


def test_a_step_that_overflows_is_survived_by_clipping(snnexp: Callable[..., Done]) -> None:
    """The clipping that the error message advises must not itself stop at the first infinite gradient."""
    done = snnexp(*SMALL, "trainer.gradient_clip=1", "loss=cross_entropy", "loss.scale=1e38", "tracking=none")
    assert "Traceback" not in done.err


def test_checkpoints_hold_no_code(done: Done, tmp_path: Path) -> None:
    """They load with weights_only=True; a pickle that would run code is refused."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "owned"),)

    path = Path(shutil.copy(done.runs()[0] / "best.pt", tmp_path))
    assert load_checkpoint(path)["model"]
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(Exception, match="cannot read the checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()


def test_the_cap_of_the_power_surrogate_is_logged(snnexp: Callable[..., Done]) -> None:
    """A low cap acts on every potential within 1 of the threshold, the default on few."""
    shares = []
    for cap in (0.2, 10.0):
        done = snnexp(*SMALL, "surrogate=power", f"surrogate.max_gradient={cap}", "tracking=none")
        history = load_checkpoint(max(done.runs()) / "last.pt")["history"]
        shares.append([m["train/surrogate_capped"] for m in history])
    low, default = shares
    assert len(low) == len(default) == 2
    assert min(low) > 0.2
    assert 0 < max(default) < 0.02
