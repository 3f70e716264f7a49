"""Where results go: MLflow, or nowhere. The only file that imports mlflow, and it does so late.

Everything is first appended to a journal in the run directory and sent from there in batches: a server that goes away
loses nothing, and a killed process neither loses nor repeats what it logged. Sending twice is harmless: each record
keeps its time, and MLflow stores the same (metric, step, time, value) once; everything else is overwritten.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from snnexp.address import ADVISORY, advisory, alone, checked, database, kind, masked
from snnexp.errors import InvalidValue, UserError
from snnexp.journal import Journal

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED", "PRUNED"]
KEY_TAG, STATUS_TAG, PARENT_TAG = "snnexp.key", "status", "mlflow.parentRunId"
WEIGHTS = "best.pt"
PARAM_LENGTH, TAG_LENGTH = 500, 5000  # what every MLflow server takes; config.yaml has the full values
METRICS, PARAMS = 1000, 100  # MLflow's limits for one request
RETRY_AFTER, RETRY_SHARE = 5.0, 20  # after a failed send, peace for 5 s, and for 20 times what it took
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the journal retries; training must not wait
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


class Tracker(Protocol):
    """What a run is reported to, one run at a time. Picklable, so that a data-parallel rank can report."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run."""

    @property
    def place(self) -> str:
        """Where the user finds the run, in words."""

    def check(self) -> None:
        """Raise UserError now, before anything slow is begun, if results could not be sent."""

    def start(
        self, run_dir: Path, name: str, params: Mapping[str, object], tags: Mapping[str, str], parent: str | None = None
    ) -> None:
        """Begin the run that belongs to `run_dir`, or take it up again; `parent` is the run id of a sweep.

        Raises UserError if the store cannot be reached.
        """

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record values. A (metric, step) that was recorded before, also by a killed process, is ignored."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or a directory in the run directory; it is sent into `folder`, under its own name."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags; a later one replaces an earlier one."""

    def model(self, path: Path) -> None:
        """Record a module saved by `torch.save`, for `mlflow.pytorch.load_model("runs:/<run_id>/model")`."""

    def weights(self, run_id: str, to: Path) -> None:
        """Fetch the `best.pt` of an earlier run into the folder `to`; it is not read here. Raises UserError."""

    def flush(self) -> None:
        """Send what was recorded. Raises nothing if the store is away."""

    def finish(self, status: Status) -> None:
        """Send the rest and close the run; does nothing if none was started."""


class Nothing:
    """`tracking=none`: everything is accepted and dropped."""

    run_id: str | None = None
    place = "nowhere (tracking=none)"

    def check(self) -> None: ...
    def start(
        self, run_dir: Path, name: str, params: Mapping[str, object], tags: Mapping[str, str], parent: str | None = None
    ) -> None: ...
    def metrics(self, values: Mapping[str, float], step: int) -> None: ...
    def artifact(self, path: Path, folder: str = "") -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def model(self, path: Path) -> None: ...
    def weights(self, run_id: str, to: Path) -> None:
        raise UserError(f"checkpoint=runs:/{run_id} is looked up in MLflow: tracking=none has no runs")

    def flush(self) -> None: ...
    def finish(self, status: Status) -> None: ...


class MLflow:
    """`tracking=mlflow`: an MLflow server or database; `uri=None` is an SQLite file in `outputs`.

    Raises InvalidValue for a uri of a kind that is not supported.
    """

    def __init__(self, uri: str | None = None, experiment: str = "snnexp", outputs: str | Path = "outputs") -> None:
        self.outputs, self.experiment = Path(outputs).absolute(), experiment
        self.given = None if uri is None else checked(uri)
        self.store = self.given or f"sqlite:///{self.outputs}/mlflow.db"
        self.run_id: str | None = None
        self.place = ""
        self._journal: Journal | None = None
        self._client: MlflowClient | None = None
        self._away, self._peace_until = False, 0.0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    def check(self) -> None:
        if self.given and self.given.startswith("http"):
            server = urlsplit(self.given)
            try:
                port = server.port or {"http": 80, "https": 443}[server.scheme]
                socket.create_connection((str(server.hostname), port), timeout=10).close()
            except OSError as error:
                raise _unreachable(self.given, error) from error

    def start(
        self, run_dir: Path, name: str, params: Mapping[str, object], tags: Mapping[str, str], parent: str | None = None
    ) -> None:
        self._journal = journal = Journal(run_dir)
        journal.address(self.store, self.experiment)
        journal.mend()
        tags = {**tags, KEY_TAG: journal.state["key"]} | ({PARENT_TAG: parent} if parent else {})
        try:
            self._connect(journal)
            journal.append(
                name=name,
                params={_key(k): _short(masked(str(v)), PARAM_LENGTH) for k, v in params.items()},
                tags={_key(k): _short(v, TAG_LENGTH) for k, v in tags.items()},
            )
            self._send(journal)
        except Exception as error:
            self._journal = None
            raise _unreachable(journal.state["uri"], error) from error

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        journal = self._started()
        logged = journal.logged()
        new = {_key(k): float(v) for k, v in values.items() if (_key(k), step) not in logged}
        if new:  # JSON knows neither nan nor inf: they stand there as words, which float() reads
            journal.append(metrics={k: v if math.isfinite(v) else str(v) for k, v in new.items()}, step=step)

    def artifact(self, path: Path, folder: str = "") -> None:
        journal = self._started()
        journal.append(artifact=str(path.absolute().relative_to(journal.folder)), folder=folder)

    def tags(self, values: Mapping[str, str]) -> None:
        self._started().append(tags={_key(k): _short(masked(v), TAG_LENGTH) for k, v in values.items()})

    def model(self, path: Path) -> None:
        import torch

        _import_mlflow()
        from mlflow.pytorch import save_model

        folder = self._started().folder / "mlflow" / "model"
        shutil.rmtree(folder, ignore_errors=True)
        module = torch.load(path, map_location="cpu", weights_only=False).eval()  # this run has just written it
        requirements = [f"{package}=={version(package).split('+')[0]}" for package in ("torch", "spikingjelly")]
        with warnings.catch_warnings(action="ignore"):
            # the other format, pt2, wants an example input and gives back a traced graph, not the module
            save_model(module, folder, pip_requirements=requirements, serialization_format="pickle")
        self.artifact(folder)

    def weights(self, run_id: str, to: Path) -> None:
        asked = f"checkpoint=runs:/{run_id}"
        if (path := database(self.store)) and not path.exists():
            raise UserError(f"{asked}: there is no MLflow store {path}; name another with tracking.uri")
        _import_mlflow()
        from mlflow import MlflowClient

        try:
            client = MlflowClient(self.store)
            if _alive(client, run_id) is None:
                raise UserError(f"{asked}: there is no such run in {masked(self.store)}")
            if WEIGHTS not in [file.path for file in client.list_artifacts(run_id)]:
                raise UserError(f"{asked}: that run keeps no weights ({WEIGHTS}): was it a training, did it finish?")
            client.download_artifacts(run_id, WEIGHTS, str(to))
        except Exception as error:
            raise _unreachable(self.store, error) from error

    def flush(self) -> None:
        if time.monotonic() >= self._peace_until:
            self._try_to_send(self._started())

    def finish(self, status: Status) -> None:
        journal, self._journal = self._journal, None
        if journal is None:
            return
        end = "KILLED" if status == "PRUNED" else status  # MLflow knows no pruned runs: the tag tells
        journal.append(end=end, tags={STATUS_TAG: status.lower()})
        if not self._try_to_send(journal):
            log.warning(
                "Not everything reached MLflow; nothing is lost. When it answers again, send the rest with\n"
                "  snnexp task=sync run_dir='%s'",
                journal.folder,
            )

    def send(self, run_dir: Path) -> int:
        """Send what an ended run has kept back, first closing as KILLED one that died; returns how many records.

        They go to the store that the run was meant for, or, if this tracker was given a uri, all of them go there.
        Raises UserError if the store cannot be reached.
        """
        journal = Journal(run_dir)
        journal.mend()
        journal.address(self.given or journal.state["uri"], journal.state["experiment"])
        if not journal.ended():
            journal.append(end="KILLED", tags={STATUS_TAG: "killed"})
        count = sum(len(records) for records, _ in journal.unsent())
        try:
            if count:
                self._client = None
                self._send(journal)
        except Exception as error:
            raise _unreachable(journal.state["uri"], error) from error
        return count

    def _started(self) -> Journal:
        if self._journal is None:
            raise RuntimeError("this tracker was not started")
        return self._journal

    def _try_to_send(self, journal: Journal) -> bool:
        """Whether everything arrived. Any failure of the store is a reason to try again later, none to stop."""
        begin = time.monotonic()
        try:
            self._send(journal)
        except Exception as error:
            now = time.monotonic()
            self._client, self._peace_until = None, now + max(RETRY_AFTER, RETRY_SHARE * (now - begin))
            if not self._away:
                log.warning(
                    "MLflow is away (%s). The run goes on; results are kept in %s and sent later.",
                    _reason(error),
                    journal.folder,
                )
            self._away = True
            return False
        if self._away:
            log.warning("MLflow is back; everything has been sent.")
        self._away = False
        return True

    def _send(self, journal: Journal) -> None:
        client = self._client or self._connect(journal)
        with alone(journal.state["uri"]):
            for records, end in journal.unsent():
                _deliver(client, str(self.run_id), journal.folder, records)
                journal.note(sent=end)

    def _connect(self, journal: Journal) -> MlflowClient:
        """Reach the store, creating it if it is a new SQLite file, and find or create the run of this journal."""
        uri = journal.state["uri"]
        with alone(uri), _one_creator(uri):
            _import_mlflow()
            from mlflow import MlflowClient

            if (path := database(uri)) and not path.exists():
                _create(path)
            client = MlflowClient(uri)
            experiment = self._experiment(client, journal)
            run = _alive(client, journal.state["run_id"])
            if run is None:  # a new one, unless we were killed before its id was noted
                key = journal.state["key"]
                found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
                run = found[0] if found else client.create_run(experiment, tags={KEY_TAG: key})
                journal.note(run_id=run.info.run_id, sent=0)
        self._client, self.run_id = client, run.info.run_id
        where = f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        self.place = masked(uri) + (where if uri.startswith("http") else " (see it with: snnexp task=ui)")
        return client

    def _experiment(self, client: MlflowClient, journal: Journal) -> str:
        from mlflow.exceptions import MlflowException

        name, uri = journal.state["experiment"], journal.state["uri"]
        # a server decides where artifacts lie; for a database the client must say
        path = database(uri)
        root = None if uri.startswith("http") else str((path.parent if path else self.outputs) / "artifacts")
        if (experiment := client.get_experiment_by_name(name)) is None:
            try:
                return str(client.create_experiment(name, artifact_location=root))
            except MlflowException:  # another process was faster
                if (experiment := client.get_experiment_by_name(name)) is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise UserError(f"tracking.experiment={name} was deleted in MLflow: restore it there, or take another name")
        kept = Path(experiment.artifact_location)  # MLflow cannot change it, and would write to the old place
        if root and kept.is_absolute() and str(kept) != root and not kept.exists():
            raise UserError(
                f"tracking.experiment={name} keeps its artifacts in {kept}, which is gone: was {path} "
                "moved? Move it back, or take another name"
            )
        return str(experiment.experiment_id)


@dataclass(frozen=True)
class Stored:
    """A run as the store has it; `metrics` are the last values, times are in seconds since 1970."""

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

    @property
    def parent(self) -> str | None:
        """The run id of the sweep that it belongs to."""
        return self.tags.get(PARENT_TAG)


class Store:
    """What was logged, read only.

    Raises UserError if the tracker keeps nothing, nothing was logged yet, or the store cannot be reached; `task` is
    who asks.
    """

    def __init__(self, tracker: Tracker, task: str) -> None:
        self.uri = kept(tracker, task)
        _import_mlflow()
        from mlflow import MlflowClient

        self._client = MlflowClient(self.uri)
        try:
            found = self._client.search_experiments()
        except Exception as error:
            raise _unreachable(self.uri, error) from error
        self.experiments = {experiment.name: str(experiment.experiment_id) for experiment in reversed(found)}

    def runs(self, experiments: Sequence[str], condition: str = "") -> list[Stored]:
        """The runs of these experiments that meet `condition` (MLflow's search syntax), oldest first.

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
                    raise _unreachable(self.uri, error) from error
                raise InvalidValue("filter", condition, f"in MLflow's search syntax ({_reason(error)})") from error
            found += page
            if not (token := page.token):
                break
        names = {id: name for name, id in self.experiments.items()}
        return [_stored(run, names[str(run.info.experiment_id)]) for run in found]

    def curve(self, run: Stored, metric: str) -> dict[int, float]:
        """{step: value}, by step."""
        return {
            m.step: m.value
            for m in sorted(self._client.get_metric_history(run.run_id, metric), key=lambda m: (m.step, m.timestamp))
        }

    def files(self, run: Stored, folder: str, to: Path) -> list[Path]:
        """The artifacts that lie in `folder`, fetched into `to`, by name."""
        if folder not in [item.path for item in self._client.list_artifacts(run.run_id) if item.is_dir]:
            return []
        fetched = Path(self._client.download_artifacts(run.run_id, folder, str(to)))
        return sorted(path for path in fetched.iterdir() if path.is_file())


def kept(tracker: Tracker, task: str) -> str:
    """The address of what `tracker` has logged. Raises UserError if that is nothing; `task` is who asks."""
    if not isinstance(tracker, MLflow):
        raise UserError(f"{task} shows what MLflow has: it needs tracking=mlflow")
    if (path := database(tracker.store)) and not path.exists():
        raise UserError(f"nothing was logged yet in {path.parent}: run `snnexp` (or `make run`) first")
    return tracker.store


def _stored(run: Any, experiment: str) -> Stored:
    info, tags = run.info, run.data.tags
    return Stored(
        info.run_id,
        str(info.experiment_id),
        experiment,
        info.run_name,
        tags.get(STATUS_TAG, info.status.lower()),
        info.start_time / 1000,
        info.end_time / 1000 if info.end_time else None,
        run.data.params,
        tags,
        run.data.metrics,
    )


def _deliver(client: MlflowClient, run_id: str, folder: Path, records: list[dict[str, Any]]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    metrics = [
        Metric(key, float(value), r["time"], r["step"]) for r in records for key, value in r.get("metrics", {}).items()
    ]
    for i in range(0, len(metrics), METRICS):
        client.log_batch(run_id, metrics=metrics[i : i + METRICS])
    for r in records:
        if r.get("end") == "KILLED" and client.get_run(run_id).info.status == "FINISHED":
            continue  # a part of a sweep that was taken up elsewhere, and is done
        if "name" in r:
            client.update_run(run_id, status="RUNNING", name=r["name"])
            there = client.get_run(run_id).data.params  # MLflow refuses to change a parameter
            params = [Param(k, v) for k, v in r["params"].items() if k not in there]
            tags = [RunTag(k, v) for k, v in r["tags"].items()]
            for i in range(0, max(len(params), 1), PARAMS):
                client.log_batch(run_id, params=params[i : i + PARAMS], tags=tags)
        elif "tags" in r:
            client.log_batch(run_id, tags=[RunTag(k, v) for k, v in r["tags"].items()])
        elif "artifact" in r:
            path = folder / r["artifact"]
            if path.is_dir():
                client.log_artifacts(run_id, str(path), "/".join(filter(None, (r["folder"], path.name))))
            elif path.exists():
                client.log_artifact(run_id, str(path), r["folder"] or None)
            else:
                log.warning("%s was deleted before it could be sent to MLflow", path)
        if "end" in r:
            client.set_terminated(run_id, r["end"], r["time"])


@contextmanager
def _one_creator(uri: str) -> Iterator[None]:
    """One process at a time, on all machines: two that make MLflow's tables in one database both fail."""
    if kind(uri) not in ADVISORY:
        yield
        return
    from sqlalchemy import create_engine

    engine = create_engine(uri)
    try:
        with advisory(engine, uri, "mlflow"):
            yield
    finally:
        engine.dispose()


def _create(path: Path) -> None:
    """A new SQLite store, whole or not at all: MLflow cannot go on from one whose creation was killed."""
    from mlflow import MlflowClient

    draft = path.with_name(f".{path.name}.new") / "draft"
    shutil.rmtree(draft.parent, ignore_errors=True)
    MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
    draft.rename(path)
    draft.parent.rmdir()


def _alive(client: MlflowClient, run_id: str | None) -> Any:
    """The run, or None if the store has no such run, or only in its bin."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run and run.info.lifecycle_stage == "active" else None


def preload() -> None:
    """Import what `MLflow` needs, before it is needed (a process that forks does it once for its children)."""
    _import_mlflow()
    from mlflow import MlflowClient  # noqa: F401


def _import_mlflow() -> None:
    """Import mlflow so that it neither prints, nor reports home, nor waits long for a server."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings(action="ignore"):
        import mlflow  # noqa: F401
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _unreachable(uri: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(
        f"tracking.uri={masked(uri)} cannot be reached: {_reason(error)}\nStart the "
        "server, correct tracking.uri (null: a file under outputs_dir), or go without: tracking=none"
    )


def _reason(error: Exception) -> str:
    """In a line: what is at the bottom of it, for MLflow wraps a refused connection three times."""
    root: BaseException = error
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__ or root
    return _short(masked(" ".join(str(root).split())), 200) or type(root).__name__


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _key(name: str) -> str:
    """A name that MLflow takes: no other characters, and nothing that a path would shorten."""
    return os.path.normpath(re.sub(r"[^\w\-. :/]", "_", name)).lstrip("./")[:250] or "_"
