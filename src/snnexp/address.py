"""Addresses of MLflow stores and study databases: checks, drivers, and locks."""

from __future__ import annotations

import importlib
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp.errors import InvalidValue, UserError, require
from snnexp.lock import TELL_AFTER, gave_up, locked, log, waiting
from snnexp.masking import is_masked, masked

if TYPE_CHECKING:
    from sqlalchemy import Engine

URI = re.compile(r"(https?|(sqlite|postgresql|mysql|mssql)(\+\w+)?)://.+")
SQLITE_PATH = 480  # bytes; SQLite opens 504, and files with longer names stand beside it
LOCK_PATIENCE = 300.0  # seconds; on a busy machine, many processes may wait while one creates the store
# SQL to take (0 if it is not free in time), name the holder of, and release a lock of the server, which it releases
# itself if we die. PostgreSQL raises an error instead of returning 0.
ADVISORY = {
    "postgresql": (
        "select pg_advisory_lock({0})::text = ''",
        "select concat('process ', pid, ' of ', usename, ' from ', coalesce(host(client_addr), 'the server itself')) "
        "from pg_stat_activity where pid = (select pid from pg_locks where locktype = 'advisory' and granted and "
        "objid = {0} and database = (select oid from pg_database where datname = current_database()) limit 1)",
        "select pg_advisory_unlock({0})",
    ),
    "mysql": (
        "select get_lock('snnexp{0}', {1})",
        "select concat('connection ', is_used_lock('snnexp{0}'))",
        "select release_lock('snnexp{0}')",
    ),
}
LOCK_TIMEOUT = "55P03"  # PostgreSQL's code; psycopg2 and psycopg 3 have it under different names
# The drivers of each kind, the first preferred: name in an address, module, package.
DRIVERS = {
    "postgresql": (("psycopg2", "psycopg2", "psycopg2-binary"), ("psycopg", "psycopg", "psycopg[binary]")),
    "mysql": (("pymysql", "pymysql", "pymysql"), ("mysqldb", "MySQLdb", "mysqlclient")),
    "mssql": (("pyodbc", "pyodbc", "pyodbc"), ("pymssql", "pymssql", "pymssql")),
}


def checked_uri(uri: str) -> str:
    """Return `uri`, with the path of an SQLite file made absolute. Raises InvalidValue for an unsupported store."""
    if not isinstance(uri, str) or not URI.fullmatch(uri):
        kinds = "an MLflow server (http://HOST:PORT) or a database (sqlite:///FILE, postgresql://..., mysql://...)"
        folders = "plain folders (file:, ./mlruns) are not supported, because MLflow no longer develops them"
        raise InvalidValue("uri", masked(str(uri)), f"{kinds}; {folders}")
    check_password("uri", uri)
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


def check_password(name: str, uri: str) -> None:
    """Raise InvalidValue if the password was hidden, or was not quoted as the address of a database requires."""
    require(
        not is_masked(uri),
        name,
        uri,
        "an address with its own password, which runs replace by *** in all that they store (docs/tracking.md)",
    )
    password = uri.partition("://")[2].partition("?")[0].rpartition("@")[0].partition(":")[2]
    plain = kind(uri) == "sqlite" or not re.search(r"[@\s]", password)
    require(plain, name, masked("".join(uri.split())), "an address whose password is percent-encoded (@ as %40)")


def with_driver(uri: str) -> str:
    """Return the address of a database with the name of an installed driver. Raises UserError if there is none."""
    scheme, separator, rest = uri.partition("://")
    wanted = scheme.partition("+")[2]
    known = [each for each in DRIVERS.get(kind(uri), ()) if wanted in ("", each[0])]
    for driver, module, _ in known:
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        return f"{kind(uri)}+{driver}{separator}{rest}"
    if known:
        package = known[0][2]
        raise UserError(
            f"{masked(uri)} needs the Python driver {' or '.join(each[0] for each in known)}, which is not installed: "
            f"python -m pip install '{package}' (with uv: uv pip install '{package}')"
        )
    return uri


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
    """Hold the lock `purpose` of the database server at `uri` (a kind in ADVISORY); it holds across machines.

    After `TELL_AFTER` seconds of waiting, say once who holds it. Raises Held after `LOCK_PATIENCE` seconds.
    """
    from sqlalchemy.exc import DBAPIError

    number = zlib.crc32(f"snnexp {purpose}".encode())
    take, who, give = ADVISORY[kind(uri)]
    with engine.connect() as connection:

        def taken(seconds: float) -> bool:
            try:
                if kind(uri) == "postgresql":
                    connection.exec_driver_sql(f"set local lock_timeout = {int(seconds * 1000)}")
                return bool(connection.exec_driver_sql(take.format(number, int(seconds))).scalar())
            except DBAPIError as error:
                connection.rollback()
                if LOCK_TIMEOUT not in (getattr(error.orig, name, None) for name in ("pgcode", "sqlstate")):
                    raise
                return False

        def holder() -> str:
            return str(connection.exec_driver_sql(who.format(number)).scalar() or "another process")

        what = f"the lock of {masked(uri)}"
        if not taken(TELL_AFTER):
            log.info("%s", waiting(what, holder(), LOCK_PATIENCE))
            if not taken(LOCK_PATIENCE - TELL_AFTER):
                raise gave_up(what, holder(), LOCK_PATIENCE)
        try:
            yield
        finally:
            with suppress(DBAPIError):  # a server that is away has released it
                connection.exec_driver_sql(give.format(number))
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

    uri = with_driver(uri)
    with advisory(create_engine(uri, connect_args=arguments or {}, poolclass=NullPool), uri, purpose):
        yield
