"""What the MLflow UI shows: the kind and columns of an experiment, datasets, sources, short names of jobs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import stored
from snnexp.tracking import MLflow, Store, runs_address
from snnexp.tracking.client import connect
from snnexp.tracking.view import KIND_TAG, VIEW_TAG
from snnexp.trial.job import label

DATA = {"name": "digits_saccade", "train": 5, "val": 2, "test": 3, "digest": "7391c3c6dfcfc928"}


@pytest.fixture
def outputs(tmp_path: Path, empty_database: Path) -> Path:
    shutil.copy(empty_database, tmp_path)
    return tmp_path


def test_an_experiment_has_a_kind_and_a_view_and_its_runs_a_dataset_and_a_source(outputs: Path) -> None:
    tracker = MLflow(outputs=outputs)
    (outputs / "run").mkdir()
    for _ in range(2):  # the second time, as a resumed run
        tracker.start(outputs / "run", "a", {}, {"task": "train"}, data=DATA)
        tracker.finish("FINISHED")
    client = connect(tracker.store)
    experiment = client.get_experiment_by_name("snnexp")
    assert experiment.tags[KIND_TAG] == "custom_model_development"
    columns = json.loads(experiment.tags[VIEW_TAG])["selectedColumns"]
    assert columns[:2] == ["tags.`task`", "metrics.`test/accuracy`"]
    assert {"params.`seed`", "attributes.`Dataset`", "attributes.`Source`"} < set(columns)
    run = client.get_run(tracker.run_id)
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits_saccade", "7391c3c6dfcfc928")
    assert json.loads(data.dataset.profile) == {"train": 5, "val": 2, "test": 3}
    assert run.data.tags["mlflow.source.name"] == "snnexp"


def test_the_newest_experiment_comes_first_and_those_of_others_are_left_alone(outputs: Path) -> None:
    client = connect(f"sqlite:///{outputs / 'mlflow.db'}")
    foreign = client.create_experiment("foreign")
    client.create_run(foreign)
    for name in ("older", "newer"):
        stored.logged(outputs, "a", stored.TRAINED, {}, experiment=name)
    older = client.get_experiment_by_name("older").experiment_id
    client.delete_experiment_tag(older, VIEW_TAG)  # as an earlier version left it
    client.set_experiment_tag(older, KIND_TAG, "regression")
    store = Store(MLflow(outputs=outputs), "task=ui")
    assert list(store.presented()) == ["newer", "older"]
    assert list(store.presented("older")) == ["older", "newer"]
    tags = client.get_experiment(older).tags
    assert VIEW_TAG in tags
    assert tags[KIND_TAG] == "regression", "somebody's choice"
    assert not {KIND_TAG, VIEW_TAG} & client.get_experiment(foreign).tags.keys()


def test_the_address_is_that_of_the_table_of_runs() -> None:
    address = "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=snnexp"
    assert runs_address("http://127.0.0.1:5000", "7") == address


def test_names_of_jobs_are_short_and_distinct() -> None:
    assert label({"surrogate": "power", "surrogate.alpha": "0.5", "seed": "1"}) == "power alpha=0.5 seed=1"
    both = {"neuron.alpha": "1", "surrogate.alpha": "2"}
    assert label(both) == "neuron.alpha=1 surrogate.alpha=2"
    assert label({"experiment": "lab2_dvs"}) == "experiment=lab2_dvs"
