"""Reading runs back from MLflow, for reports and the MLflow UI."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snnexp.address import database
from snnexp.errors import InvalidValue, UserError
from snnexp.masking import masked
from snnexp.tracking.base import KEY_TAG, PARENT_TAG, STATUS_TAG, SWEEP_TAG, Tracker
from snnexp.tracking.client import active_run, connect, reason, relocated, unreachable
from snnexp.tracking.view import presented
from snnexp.tracking.writer import MLflow


@dataclass(frozen=True)
class Stored:
    """A run read from the store; `metrics` are the last values, times are in seconds since 1970."""

    run_id: str
    experiment_id: str
    experiment: str
    name: str
    status: str  # finished, failed, killed, pruned or running
    start: float
    end: float | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    artifacts: str = ""  # address of the folder

    @property
    def parent(self) -> str | None:
        """The run id of the sweep that the run belongs to."""
        return self.tags.get(SWEEP_TAG) or self.tags.get(PARENT_TAG)


class Store:
    """The runs that a tracker has logged, read only; `task` is the name of the reading task, for error messages.

    Raises UserError if the tracker records nothing, nothing was logged yet, or the store cannot be reached.
    """

    def __init__(self, tracker: Tracker, task: str) -> None:
        self.uri = kept(tracker, task)
        self._client = connect(self.uri)
        try:
            found = self._client.search_experiments()
        except Exception as error:
            raise unreachable(self.uri, error) from error
        self.experiments = {experiment.name: str(experiment.experiment_id) for experiment in reversed(found)}

    def presented(self, first: str = "") -> dict[str, str]:
        """Return {name: id} of the experiments with runs of snnexp: `first`, then by their newest run.

        The UI will show the table of their runs, also if an earlier version made them. Raises UserError.
        """
        try:
            found = [e for e in self._client.search_experiments() if e.lifecycle_stage == "active"]
            newest = {}
            for experiment in found:
                ours, latest = f"tags.`{KEY_TAG}` LIKE '%'", ["attributes.start_time DESC"]
                if runs := self._client.search_runs([experiment.experiment_id], ours, max_results=1, order_by=latest):
                    presented(self._client, experiment)
                    newest[experiment.name] = (experiment.name == first, runs[0].info.start_time)
        except Exception as error:
            raise unreachable(self.uri, error) from error
        return {name: self.experiments[name] for name in sorted(newest, key=newest.__getitem__, reverse=True)}

    def runs(self, experiments: Sequence[str], condition: str = "") -> list[Stored]:
        """Return the runs of these experiments that meet `condition` (MLflow's search syntax), oldest first.

        Raises InvalidValue if MLflow cannot read the condition.
        """
        from mlflow.exceptions import MlflowException

        ids, token = [self.experiments[name] for name in experiments], None
        found: list[Any] = []
        while True:
            try:
                page = self._client.search_runs(ids, condition, order_by=["attributes.start_time"], page_token=token)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise unreachable(self.uri, error) from error
                raise InvalidValue("filter", condition, f"in MLflow's search syntax ({reason(error)})") from error
            found += page
            if not (token := page.token):
                break
        names = {id: name for name, id in self.experiments.items()}
        return [_stored(run, names[str(run.info.experiment_id)]) for run in found]

    def run(self, run_id: str) -> Stored | None:
        """Return the run; None if there is no such run."""
        try:
            run = active_run(self._client, run_id)
        except Exception as error:
            raise unreachable(self.uri, error) from error
        if run is None:
            return None
        experiments = {id: name for name, id in self.experiments.items()}
        return _stored(run, experiments.get(str(run.info.experiment_id), ""))

    def file(self, run: Stored, name: str, to: Path) -> None:
        """Copy the artifact `name`, a file, into the folder `to`, if the run has it. Raises UserError."""
        try:
            if moved := relocated(self.uri, run.artifacts):
                if (moved / name).is_file():
                    shutil.copy(moved / name, to)
            elif name in [item.path for item in self._client.list_artifacts(run.run_id)]:
                self._client.download_artifacts(run.run_id, name, str(to))
        except Exception as error:  # stores of artifacts raise many types
            raise UserError(f"{name} of run {run.run_id}: {reason(error)}") from error

    @property
    def place(self) -> str:
        """The address without its password."""
        return masked(self.uri)

    def curve(self, run: Stored, metric: str) -> dict[int, float]:
        """Return {step: value} in the order of the steps."""
        points = sorted(self._client.get_metric_history(run.run_id, metric), key=lambda m: (m.step, m.timestamp))
        return {m.step: m.value for m in points}

    def files(self, run: Stored, folder: str, to: Path) -> list[Path]:
        """Return the paths of the artifacts in `folder`, sorted by name, after downloading them into `to`.

        Raises UserError if they cannot be downloaded, for example because they were moved.
        """
        try:
            if moved := relocated(self.uri, run.artifacts):
                there = moved / folder
                return sorted(path for path in there.iterdir() if path.is_file()) if there.is_dir() else []
            if folder not in [item.path for item in self._client.list_artifacts(run.run_id) if item.is_dir]:
                return []
            fetched = Path(self._client.download_artifacts(run.run_id, folder, str(to)))
        except Exception as error:  # stores of artifacts raise many types
            raise UserError(f"{folder}/ of run {run.run_id}: {reason(error)}") from error
        return sorted(path for path in fetched.iterdir() if path.is_file())


def kept(tracker: Tracker, task: str) -> str:
    """Return the address of the store that `tracker` logs to. Raises UserError if it has none or nothing was logged."""
    if not isinstance(tracker, MLflow):
        raise UserError(f"{task} shows results from MLflow: it needs tracking=mlflow")
    if (path := database(tracker.store)) and not path.exists():
        raise UserError(f"nothing was logged yet in {path.parent}: run `snnexp` (or `make run`) first")
    return tracker.store


def _stored(run: Any, experiment: str) -> Stored:
    info, tags = run.info, run.data.tags
    names = info.run_id, str(info.experiment_id), experiment, info.run_name, tags.get(STATUS_TAG, info.status.lower())
    times = info.start_time / 1000, info.end_time / 1000 if info.end_time else None
    return Stored(*names, *times, run.data.params, tags, run.data.metrics, info.artifact_uri)
