"""Addresses of MLflow stores and study databases: checks, display without passwords, and locks."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp.errors import InvalidValue, UserError
from snnexp.lock import locked

if TYPE_CHECKING:
    from sqlalchemy import Engine

URI = re.compile(r"(https?|(sqlite|postgresql|mysql|mssql)(\+\w+)?)://.+")
SQLITE_PATH = 480  # bytes; SQLite opens 504, and files with longer names stand beside it
LOCK_PATIENCE = 300.0  # seconds; on a busy machine, many processes may wait while one creates the store
ADVISORY = {  # SQL to take and release a lock of the server, which it releases itself if we die
    "postgresql": ("select pg_advisory_lock({0})", "select pg_advisory_unlock({0})"),
    "mysql": ("select get_lock('snnexp{0}', 120)", "select release_lock('snnexp{0}')"),
}


def checked_uri(uri: str) -> str:
    """Return `uri`, with the path of an SQLite file made absolute. Raises InvalidValue for an unsupported store."""
    if not isinstance(uri, str) or not URI.fullmatch(uri):
        kinds = "an MLflow server (http://HOST:PORT) or a database (sqlite:///FILE, postgresql://..., mysql://...)"
        folders = "plain folders (file:, ./mlruns) are not supported, because MLflow no longer develops them"
        raise InvalidValue("uri", masked(str(uri)), f"{kinds}; {folders}")
    path = database(uri)
    return uri if path is None else sqlite(path.absolute())


def sqlite(path: Path) -> str:
    """Return the address of an SQLite file. Raises UserError for a path that SQLite cannot open."""
    if (length := len(os.fsencode(path))) > SQLITE_PATH:
        raise UserError(
            f"the path of the SQLite file {path} has {length} bytes, and SQLite opens none of more than {SQLITE_PATH}: "
            "choose a shorter outputs_dir or address"
        )
    escaped = str(path).replace("%", "%25").replace("?", "%3F")  # SQLAlchemy unescapes all, and ? begins a query
    return f"sqlite:///{escaped}"


def database(uri: str) -> Path | None:
    """Return the file of an SQLite store; None for other stores."""
    if kind(uri) != "sqlite":
        return None
    from sqlalchemy import make_url

    path = make_url(uri).database
    return Path(path) if path else None


def kind(uri: str) -> str:
    """Return the kind of store (sqlite, postgresql, mysql, http, ...), without the driver."""
    return uri.split(":", 1)[0].split("+", 1)[0]


def masked(text: str) -> str:
    """Replace the password in each URI in `text` by ***."""
    return re.sub(r"(://[^:/@\s]*:)[^@/\s]+@", r"\1***@", text)


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Keep other snnexp processes out of an SQLite store: SQLite copes badly with concurrent creation and writes."""
    if (path := database(uri)) is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(path.name + ".lock"), LOCK_PATIENCE):
        yield


@contextmanager
def advisory(engine: Engine, uri: str, purpose: str) -> Iterator[None]:
    """Hold the lock `purpose` of the database server at `uri` (a kind in ADVISORY); it holds across machines."""
    take, give = (sql.format(zlib.crc32(f"snnexp {purpose}".encode())) for sql in ADVISORY[kind(uri)])
    with engine.connect() as connection:
        connection.exec_driver_sql(take)
        try:
            yield
        finally:
            connection.exec_driver_sql(give)
            connection.rollback()


@contextmanager
def creating(uri: str, purpose: str, arguments: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Admit one process at a time, across machines: two that create the tables of one database server both fail.

    `arguments` are those of the driver. Does nothing for other kinds of stores.
    """
    if kind(uri) not in ADVISORY:
        yield
        return
    from sqlalchemy import NullPool, create_engine

    with advisory(create_engine(uri, connect_args=arguments or {}, poolclass=NullPool), uri, purpose):
        yield
