"""What the MLflow UI shows of an experiment: a table of its runs, with the columns that tell runs apart.

MLflow 3 shows an experiment without a kind as one about language models, and its table of runs has no column of metrics
by default. Both are set by tags of the experiment: its kind, and a view, which the UI finds by its key in the address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

VIEW = "snnexp"  # the key of the view
KIND_TAG, VIEW_TAG = "mlflow.experimentKind", f"mlflow.sharedViewState.{VIEW}"
SOURCE = {"mlflow.source.name": "snnexp", "mlflow.source.type": "LOCAL"}  # for the column Source
COLUMNS = {  # with their widths in pixels, in this order
    "tags.`task`": 80,
    "metrics.`test/accuracy`": 110,
    "metrics.`test/snn_accuracy`": 145,
    "metrics.`val/accuracy`": 110,
    "params.`seed`": 60,
    "tags.`model`": 100,
    "tags.`surrogate`": 100,
    "tags.`conversion`": 120,
    "attributes.`Dataset`": 190,
    "duration": 80,
    "attributes.`Source`": 100,
}
NAME = {"attributes.`Run Name`": 240}  # always shown


def presented(client: MlflowClient, experiment: Any) -> None:
    """Give an experiment the tags that make the UI show the table of its runs, where they differ or are missing."""
    state = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": ["attributes.`Duration`" if name == "duration" else name for name in COLUMNS],
        "columnOrder": [*NAME, "runDateAndNestInfo", *COLUMNS],
        "columnWidths": NAME | COLUMNS,
    }
    if KIND_TAG not in experiment.tags:  # somebody may have chosen another one
        client.set_experiment_tag(experiment.experiment_id, KIND_TAG, "custom_model_development")
    if experiment.tags.get(VIEW_TAG) != (text := json.dumps(state)):
        client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, text)


def runs_address(ui: str, experiment_id: str) -> str:
    """Return the address of the table of runs in the UI at `ui`; `presented` makes what it shows."""
    return f"{ui}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def dataset_input(data: Mapping[str, Any]) -> DatasetInput:
    """Return the entry of the column Dataset for a dataset's identity (`snnexp.dataset.base.Data.identity`)."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, digest = str(data.get("name", "?")), str(data.get("digest", "?"))
    source = json.dumps({"uri": f"dataset={name}"})
    samples = {key: value for key, value in data.items() if key not in ("name", "digest")}
    made = Dataset(name=name, digest=digest, source_type="local", source=source, profile=json.dumps(samples))
    return DatasetInput(made, [InputTag("mlflow.data.context", "training")])
