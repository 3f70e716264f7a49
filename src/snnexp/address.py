"""Addresses of MLflow stores: which are allowed, what of them to show, and a lock for those that are a file."""

from __future__ import annotations

import fcntl
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from snnexp.errors import require

if TYPE_CHECKING:
    from sqlalchemy import Engine

URI = re.compile(r"(https?|(sqlite|postgresql|mysql|mssql)(\+\w+)?)://.+")
LOCK_PATIENCE = 300.0  # seconds: eight processes that start at once on a busy machine wait for one to make the store
ADVISORY = {  # a server's own lock, which it gives back if we die
    "postgresql": ("select pg_advisory_lock({0})", "select pg_advisory_unlock({0})"),
    "mysql": ("select get_lock('snnexp{0}', 120)", "select release_lock('snnexp{0}')"),
}


def checked(uri: str) -> str:
    """`uri`, an SQLite file made absolute. Raises InvalidValue for other kinds of stores."""
    require(
        isinstance(uri, str) and URI.fullmatch(uri) is not None,
        "uri",
        masked(str(uri)),
        "an MLflow server (http://HOST:PORT) or a database (sqlite:///FILE, postgresql://..., mysql://...); "
        "plain folders (file:, ./mlruns) are no longer developed by MLflow and cannot be used",
    )
    path = database(uri)
    return uri if path is None else f"sqlite:///{path.absolute()}"


def database(uri: str) -> Path | None:
    """The file of an SQLite store."""
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(match[1]) if match else None


def kind(uri: str) -> str:
    """sqlite, postgresql, mysql, http, ...: without the driver."""
    return uri.split(":", 1)[0].split("+", 1)[0]


def masked(text: str) -> str:
    """Without the password of a URI."""
    return re.sub(r"(://[^:/@\s]*:)[^@/\s]+@", r"\1***@", text)


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """One of our processes at a time in an SQLite file: creating it twice at once fails, and writing waits badly."""
    if (path := database(uri)) is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(path.name + ".lock"), LOCK_PATIENCE):
        yield


@contextmanager
def locked(path: Path, patience: float) -> Iterator[None]:
    """Hold the lock of the file `path`. Raises TimeoutError after `patience` seconds."""
    with path.open("w") as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path} is in use by another process") from None
                time.sleep(0.02)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing would leave it to a process that was forked meanwhile


@contextmanager
def advisory(engine: Engine, uri: str, purpose: str) -> Iterator[None]:
    """Hold the lock named `purpose` of the database server at `uri` (one of ADVISORY), on all machines."""
    take, give = (sql.format(zlib.crc32(f"snnexp {purpose}".encode())) for sql in ADVISORY[kind(uri)])
    with engine.connect() as connection:
        connection.exec_driver_sql(take)
        try:
            yield
        finally:
            connection.exec_driver_sql(give)
            connection.rollback()
