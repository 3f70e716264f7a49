"""Access to MLflow: the late import, the client, and its errors in words for the user."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from snnexp.address import database, with_driver
from snnexp.errors import Outage, UserError
from snnexp.masking import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the journal retries; training must not wait
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # jobs are forked, and must not share connections to a database
}


def preload() -> type[MlflowClient]:
    """Import mlflow with no output, no telemetry and short waits for a server, and return its client class.

    A process that forks calls this once, so that its children need not import it.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings(action="ignore"):
        from mlflow import MlflowClient
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient


def connect(uri: str) -> MlflowClient:
    """Return a client of the store at `uri`; the first request may fail. Raises UserError if its driver is missing."""
    return preload()(for_mlflow(uri))


def for_mlflow(uri: str) -> str:
    """Return `uri` with an explicit driver: for a plain sqlite:///, MLflow makes a folder with an escaped name."""
    if uri.startswith("sqlite:///"):
        return uri.replace("sqlite:///", "sqlite+pysqlite:///", 1)
    return with_driver(uri)


def active_run(client: MlflowClient, run_id: str | None) -> Any:
    """Return the run; None if the store has no such run, or it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run and run.info.lifecycle_stage == "active" else None


def relocated(uri: str, artifacts: str) -> Path | None:
    """Return the new folder of a run's `artifacts` if it was moved together with the store's SQLite file.

    Return None if nothing was moved. Raises UserError if the folder is in neither place.
    """
    store, old = database(uri), Path(unquote(artifacts))  # ROOT/<run id>/artifacts
    if store is None or not old.is_absolute():
        return None
    root = store.parent / "artifacts"
    if old.parents[1] == root or old.parents[1].exists():  # without files there is no folder
        return None
    if root.is_dir():
        return root.joinpath(*old.parts[-2:])
    raise UserError(
        f"the run's files were stored in {old.parents[1]}, which no longer exists, and are not in {root} either: move "
        "that folder there as well"
    )


class Unreachable(Outage):
    """Raised if a store cannot be reached or a request to it fails."""


def unreachable(uri: str, error: Exception) -> UserError:
    """Return `error` as a UserError that names the store."""
    if isinstance(error, UserError):
        return error
    return Unreachable(
        f"tracking.uri={masked(uri)} cannot be reached: {reason(error)}\nStart the server, correct tracking.uri "
        "(null: a file in outputs_dir), or run without tracking: tracking=none"
    )


def reason(error: Exception, before: BaseException | None = None) -> str:
    """Return the cause in one line: the error of the network, which MLflow wraps three times, or of a driver, if any.

    `before` is the exception that was being handled when the store was asked: Python links it to `error`, but it is not
    the cause.
    """
    links: list[BaseException] = [error]
    while (inner := links[-1].__cause__ or links[-1].__context__) and inner is not before:
        links.append(inner)
    system = [link for link in links if isinstance(link, OSError) or type(link).__module__.startswith("urllib3")]
    cause: BaseException = error
    while cause.__cause__:
        cause = cause.__cause__
    root = links[0] if isinstance(error, UserError) else system[-1] if system else cause
    return shortened(masked(" ".join(str(root).split())), 200) or type(root).__name__


def shortened(text: str, length: int) -> str:
    """Return `text`, cut to `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"
