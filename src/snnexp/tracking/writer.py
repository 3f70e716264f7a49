"""The tracker that writes to MLflow.

Everything is first appended to a journal in the run directory and then sent in batches. If the server becomes
unavailable, nothing is lost, and a killed process neither loses nor repeats what it logged. Sending twice is harmless:
each record keeps its time, MLflow stores the same (metric, step, time, value) once, and other records are overwritten.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from snnexp.address import alone, checked_uri, creating, database, sqlite, with_driver
from snnexp.errors import UserError
from snnexp.files import odd
from snnexp.journal import JOURNAL, Journal
from snnexp.lock import Held
from snnexp.masking import masked
from snnexp.tracking.base import BY_KEY, KEY_TAG, PARENT_TAG, STATUS_TAG, WEIGHTS, Status
from snnexp.tracking.client import active_run, connect, preload, reason, relocated, shortened, unreachable
from snnexp.tracking.view import SOURCE, dataset_input, presented

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunTag
    from torch import nn

log = logging.getLogger(__name__)

PARAM_LENGTH, TAG_LENGTH = 500, 5000  # accepted by every MLflow server; config.yaml has the full values
METRICS, PARAMS = 1000, 100  # MLflow's limits per request
RETRY_AFTER, RETRY_SHARE = 5.0, 20  # after a failed attempt, wait 5 s or 20 times its duration, whichever is longer


class MLflow:
    """The tracker of `tracking=mlflow`: an MLflow server or database; `uri=None` is an SQLite file in `outputs`.

    Raises InvalidValue for a uri of an unsupported kind.
    """

    def __init__(self, uri: str | None = None, experiment: str = "snnexp", outputs: str | Path = "outputs") -> None:
        self.outputs, self.experiment = Path(outputs).absolute(), experiment
        self.given = None if uri is None else checked_uri(uri)
        self.store = self.given or sqlite(self.outputs / "mlflow.db")
        self.run_id: str | None = None
        self.place = ""
        self._journal: Journal | None = None
        self._client: MlflowClient | None = None
        self._away, self._retry_at = False, 0.0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    def check(self) -> None:
        with_driver(self.store)

    def start(
        self,
        run_dir: Path,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        parent: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        self._journal = journal = Journal(run_dir)
        journal.mend()
        journal.address(self.store, self.experiment)
        tags = {**SOURCE, **tags, KEY_TAG: journal.state["key"]} | ({PARENT_TAG: parent} if parent else {})
        self.run_id, self.place = None, f"{masked(self.store)} (not sent yet: see task=sync)"
        begin, before = time.monotonic(), sys.exception()
        try:
            self._connect(journal)
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, Held):  # only the user can change this
                self._journal = None
                raise
            self._unavailable(journal, error, begin, before)
        sent = {_key(k): shortened(masked(str(v)), PARAM_LENGTH) for k, v in params.items()}
        tagged = {_key(k): shortened(v, TAG_LENGTH) for k, v in tags.items()}
        journal.append(name=name, params=sent, tags=tagged, data=data)
        if not self._away:
            self._try_to_send(journal)

    @property
    def link(self) -> str | None:
        return self.run_id or (f"{BY_KEY}{self._journal.state['key']}" if self._journal else None)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        journal = self._started()
        logged = journal.logged()
        new = {_key(k): float(v) for k, v in values.items() if (_key(k), step) not in logged}
        if new:  # JSON has neither nan nor inf: they are written as strings, which float() reads
            journal.append(metrics={k: v if math.isfinite(v) else str(v) for k, v in new.items()}, step=step)

    def artifact(self, path: Path, folder: str = "") -> None:
        journal = self._started()
        relative = str(path.absolute().relative_to(journal.folder))
        contained(journal.folder, relative, folder)
        journal.append(artifact=relative, folder=folder)

    def tags(self, values: Mapping[str, str]) -> None:
        self._started().append(tags={_key(k): shortened(masked(v), TAG_LENGTH) for k, v in values.items()})

    def model(self, module: nn.Module) -> None:
        preload()
        from mlflow.pytorch import save_model

        folder = self._started().folder / "mlflow" / "model"
        shutil.rmtree(folder, ignore_errors=True)
        requirements = [f"{package}=={version(package).split('+')[0]}" for package in ("torch", "spikingjelly")]
        with warnings.catch_warnings(action="ignore"):
            # the other format, pt2, needs an example input and stores a traced graph, not the module
            save_model(module.eval(), folder, pip_requirements=requirements, serialization_format="pickle")
        self.artifact(folder)

    def weights(self, run_id: str, to: Path) -> None:
        asked = f"checkpoint=runs:/{run_id}"
        if (path := database(self.store)) and not path.exists():
            raise UserError(f"{asked}: there is no MLflow store {path}; name another with tracking.uri")
        try:
            client = connect(self.store)
            if (run := active_run(client, run_id)) is None:
                raise UserError(f"{asked}: there is no such run in {masked(self.store)}")
            if (moved := relocated(self.store, run.info.artifact_uri)) and (moved / WEIGHTS).exists():
                shutil.copy(moved / WEIGHTS, to)
            elif WEIGHTS in [file.path for file in client.list_artifacts(run_id)]:
                client.download_artifacts(run_id, WEIGHTS, str(to))
            else:
                raise UserError(f"{asked}: that run keeps no weights ({WEIGHTS}): was it a finished training?")
        except Exception as error:
            raise unreachable(self.store, error) from error

    def flush(self) -> None:
        if time.monotonic() >= self._retry_at:
            self._try_to_send(self._started())

    def finish(self, status: Status) -> None:
        journal, self._journal = self._journal, None
        if journal is None:
            return
        end = "KILLED" if status == "PRUNED" else status  # MLflow has no status for pruned runs; the tag has
        journal.append(end=end, tags={STATUS_TAG: status.lower()})
        if not self._try_to_send(journal):
            lost = "Not everything reached MLflow; nothing is lost. When it is available again, send the rest with"
            where = f"tracking.uri='{masked(self.given)}'" if self.given else f"outputs_dir='{self.outputs}'"
            log.warning("%s\n  snnexp task=sync task.run_dir='%s' %s", lost, journal.folder, where)

    def send(self, run_dir: Path) -> int:
        """Send the unsent records of an ended run, and return their number. A run that died is closed as KILLED.

        They go to the store of this tracker. If it was given a uri, all records of a run that was tracked elsewhere go
        there. Without one, a run that was tracked elsewhere is refused, because its folder may be another person's, and
        a server is sent the user's token. Raises UserError, also if the folder or the store cannot be read.
        """
        journal = Journal(run_dir)
        state = journal.state
        if not {"key", "uri", "experiment", "sent"} <= state.keys():
            raise UserError(f"{run_dir} cannot be sent: its tracking.json is incomplete")
        if not (self.given or self._own(state["uri"])):
            if journal.ended() and not any(journal.unsent()):
                return 0
            uri = masked(state["uri"])
            raise UserError(
                f"{run_dir} was tracked in {uri}, which this command does not name: if you trust that address, send "
                f"with task.run_dir='{run_dir}' tracking.uri='{uri}'"
            )
        journal.mend()
        journal.address(self.store, state["experiment"])
        if not journal.ended():
            journal.append(end="KILLED", tags={STATUS_TAG: "killed"})
        count = sum(len(records) for records, _ in journal.unsent())
        try:
            if count:
                self._client = None
                self._send(journal)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{journal.file} cannot be sent: {type(error).__name__}: {error}") from error
        except Exception as error:
            raise unreachable(self.store, error) from error
        return count

    def probe(self) -> None:
        """Raise UserError unless the store answers."""
        try:
            connect(self.store).search_experiments(max_results=1)
        except Exception as error:
            raise unreachable(self.store, error) from error

    def _own(self, uri: str) -> bool:
        """Return whether `uri` is the address of this tracker's store, perhaps with another path to its file."""
        there, here = database(uri), database(self.store)
        return masked(uri) == masked(self.store) or bool(there and here and there.resolve() == here.resolve())

    def _started(self) -> Journal:
        if self._journal is None:
            raise RuntimeError("this tracker was not started")
        return self._journal

    def _try_to_send(self, journal: Journal) -> bool:
        """Return whether everything was sent. After any failure of the store the run continues and retries later."""
        begin, before = time.monotonic(), sys.exception()
        try:
            self._send(journal)
        except Exception as error:
            self._unavailable(journal, error, begin, before)
            return False
        if self._away:
            log.warning("MLflow is available again; everything has been sent.")
        self._away = False
        return True

    def _unavailable(self, journal: Journal, error: Exception, begin: float, before: BaseException | None) -> None:
        """Note that the store is away, and tell the user once; the attempt that failed began at `begin`."""
        now = time.monotonic()
        self._client, self._retry_at = None, now + max(RETRY_AFTER, RETRY_SHARE * (now - begin))
        if not self._away:
            kept = f"results are kept in {journal.folder} and sent to {masked(self.store)} later."
            log.warning("MLflow is unavailable (%s). The run continues; %s", reason(error, before), kept)
        self._away = True

    def _send(self, journal: Journal) -> None:
        client = self._client or self._connect(journal)
        with alone(self.store):
            for records, end in journal.unsent():
                _deliver(client, str(self.run_id), journal.folder, records)
                journal.note(sent=end)

    def _connect(self, journal: Journal) -> MlflowClient:
        """Connect to the store, creating a new SQLite file if needed, and find or create the run of this journal."""
        uri = self.store
        with alone(uri), creating(uri, "mlflow"):
            if (path := database(uri)) and not path.exists():
                create_store(path)
            client = connect(uri)
            experiment = self._experiment(client, journal)
            run, key = active_run(client, journal.state["run_id"]), journal.state["key"]
            if run and run.data.tags.get(KEY_TAG) != key:  # somebody else's run: the state was changed
                run = None
            if run is None:  # it may still exist: a process can be killed before it notes the id
                run = _run_of(client, experiment, key)
                journal.note(run_id=run.info.run_id, sent=0)
        self._client, self.run_id = client, run.info.run_id
        where = f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        self.place = masked(uri) + (where if uri.startswith("http") else " (see it with: snnexp task=ui)")
        return client

    def _experiment(self, client: MlflowClient, journal: Journal) -> str:
        """Return the id of the experiment, created if it does not exist. Raises UserError if it cannot be used."""
        from mlflow.exceptions import MlflowException

        name, uri = journal.state["experiment"], self.store
        # a server chooses where artifacts are stored; for a database the client must say
        path = database(uri)
        root = None if uri.startswith("http") else (path.parent if path else self.outputs) / "artifacts"
        if (experiment := client.get_experiment_by_name(name)) is None:
            location = str(root).replace("%", "%25") if root else None  # MLflow unescapes paths, of this character
            try:
                experiment = client.get_experiment(client.create_experiment(name, artifact_location=location))
            except MlflowException:  # another process was faster
                if (experiment := client.get_experiment_by_name(name)) is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise UserError(f"tracking.experiment={name} was deleted in MLflow: restore it there, or use another name")
        kept = Path(unquote(experiment.artifact_location))  # MLflow cannot change it, and would write to the old place
        if root and kept.is_absolute() and kept != root and not kept.exists():
            raise UserError(
                f"tracking.experiment={name} stores its artifacts in {kept}, which no longer exists: was {path} "
                "moved? Move it back, or use another name"
            )
        presented(client, experiment)
        return str(experiment.experiment_id)


def _run_of(client: MlflowClient, experiment: str, key: str) -> Any:
    """Return the run that has this key, created if it does not exist."""
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return found[0] if found else client.create_run(experiment, tags={KEY_TAG: key})


def _linked(client: MlflowClient, run: Any, tags: Mapping[str, str]) -> list[RunTag]:
    """Return the tags of a run; a link by key becomes the id of that run, which is created if it does not exist."""
    from mlflow.entities import RunTag

    def known(value: str) -> str:
        key = value.removeprefix(BY_KEY)
        return value if key == value else str(_run_of(client, run.info.experiment_id, key).info.run_id)

    return [RunTag(name, known(value)) for name, value in tags.items()]


def _deliver(client: MlflowClient, run_id: str, folder: Path, records: list[dict[str, Any]]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    values = ((r, key, float(value)) for r in records for key, value in r.get("metrics", {}).items())
    metrics = [Metric(key, value, r["time"], r["step"]) for r, key, value in values]
    for i in range(0, len(metrics), METRICS):
        client.log_batch(run_id, metrics=metrics[i : i + METRICS])
    for r in records:
        if r.get("end") == "KILLED" and client.get_run(run_id).info.status == "FINISHED":
            continue  # a sweep that another process has resumed and finished
        if "name" in r:
            client.update_run(run_id, status="RUNNING", name=r["name"])
            run = client.get_run(run_id)  # MLflow refuses to change a parameter
            params = [Param(k, v) for k, v in r["params"].items() if k not in run.data.params]
            tags = _linked(client, run, r["tags"])
            for i in range(0, max(len(params), 1), PARAMS):
                client.log_batch(run_id, params=params[i : i + PARAMS], tags=tags)
            if data := r.get("data"):
                client.log_inputs(run_id, datasets=[dataset_input(data)])
        elif "tags" in r:
            client.log_batch(run_id, tags=[RunTag(k, v) for k, v in r["tags"].items()])
        elif "artifact" in r:
            path = contained(folder, r["artifact"], r["folder"])
            if path.is_dir():
                client.log_artifacts(run_id, str(path), "/".join(filter(None, (r["folder"], path.name))))
            elif path.exists():
                client.log_artifact(run_id, str(path), r["folder"] or None)
            else:
                log.warning("%s was deleted before it could be sent to MLflow", path)
        if "end" in r:
            client.set_terminated(run_id, r["end"], r["time"])


def contained(folder: Path, relative: str, target: str) -> Path:
    """Return the path of a run's artifact. Raises UserError unless the path lies in the run directory, contains no
    link, and `target` lies in the artifacts of the run.
    """
    path, parts = folder / relative, Path(relative).parts
    inside = not (Path(relative).is_absolute() or ".." in parts or Path(target).is_absolute() or ".." in target)
    ways = [folder.joinpath(*parts[: i + 1]) for i in range(len(parts))] if inside else []
    if not inside or any(way.is_symlink() for way in ways) or odd(path):
        raise UserError(
            f"{folder / JOURNAL} names an artifact that is not a file or folder of that run directory: "
            f"{relative}{f' (to {target})' if target else ''}. It is not sent"
        )
    return path


def create_store(path: Path) -> None:
    """Create a new SQLite store atomically: MLflow cannot use one whose creation was interrupted."""
    draft = path.with_name(f".{path.name}.new") / "draft"
    shutil.rmtree(draft.parent, ignore_errors=True)
    draft.parent.mkdir(parents=True)
    connect(sqlite(draft)).search_experiments(max_results=1)
    draft.rename(path)
    draft.parent.rmdir()


def _key(name: str) -> str:
    """Return a name that MLflow accepts: allowed characters only, and a normalized path."""
    return os.path.normpath(re.sub(r"[^\w\-. :/]", "_", name)).lstrip("./")[:250] or "_"
