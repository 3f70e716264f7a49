"""Storages of Optuna studies: one connection per process and address, and a lock across all processes of a sweep."""

import json
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
from hydra.utils import instantiate
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend

from snnexp.address import advisory, check_password, creating, database, kind, with_driver
from snnexp.errors import InvalidValue, UserError
from snnexp.lock import locked
from snnexp.masking import masked
from snnexp.trial.job import Address
from snnexp.trial.outage import Patient, waited

SCHEME = "journal:"
CONNECT = {"sqlite": {"timeout": 60}, "postgresql": {"connect_timeout": 10}, "mysql": {"connect_timeout": 10}}
PATIENCE = 120.0  # seconds
_threads = threading.RLock()  # reentrant, so that calls of `exclusive` can be nested
_depth = 0


def open_storage(url: str, key: str = "hydra.sweeper.storage") -> BaseStorage:
    """Return the storage at `url`: sqlite:///FILE, journal:FILE, postgresql://..., mysql://.... A new file is created.

    Raises UserError, which names `key`, if the storage cannot be reached.
    """
    return _open_storage(url, key, os.getpid())  # a forked child must not use its parent's connections


@lru_cache
def _open_storage(url: str, key: str, process: int) -> BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        check_password("storage", url)
        if path := file(url):
            path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(url) if path else creating(url, "study", CONNECT.get(kind(url))):
            return Patient(_made(url), url)  # type: ignore[no-any-return]
    except InvalidValue as error:
        raise error.told(key) from error
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy, drivers and the file system raise many kinds
        reason = masked(" ".join(str(error.__cause__ or error).split()))[:300]
        raise UserError(
            f"{key}={masked(url)} cannot be reached: {reason}\n"
            "It must be sqlite:///FILE, journal:FILE, postgresql://USER@HOST/DATABASE, mysql://..., or null "
            "(optuna.db in outputs_dir)"
        ) from error


def _made(url: str) -> BaseStorage:
    if url.startswith(SCHEME):
        return JournalStorage(JournalFileBackend(str(file(url))))
    if kind(url) not in CONNECT or (kind(url) == "sqlite" and database(url) in (None, Path(":memory:"))):
        raise ValueError("this is not the storage of a study")
    engine: dict[str, Any] = {"connect_args": CONNECT[kind(url)], "pool_pre_ping": kind(url) != "sqlite"}
    return get_storage(RDBStorage(with_driver(url), engine_kwargs=engine))


def file(url: str) -> Path | None:
    """Return the file of a journal or SQLite storage; None for other storages."""
    return Path(url.removeprefix(SCHEME)) if url.startswith(SCHEME) else database(url)


@contextmanager
def exclusive(url: str) -> Iterator[None]:
    """Admit one process of the sweep at a time, on all machines: data read in the block are current until it writes."""
    global _depth
    with _threads:
        if _depth:  # this thread holds the lock already
            yield
            return
        _depth += 1
        try:
            path = file(url)
            with ExitStack() as turn:
                waited(url, lambda: turn.enter_context(_turn(url, path)))
                yield
        finally:
            _depth -= 1


def _turn(url: str, path: Path | None) -> AbstractContextManager[None]:
    if path:
        return locked(path.with_name(f".{path.name}.turn"), PATIENCE)
    storage: Any = open_storage(url).storage  # type: ignore[attr-defined]
    return advisory(getattr(storage, "_backend", storage).engine, url, "sweep")


def open_trial(address: Address) -> optuna.Trial:
    """Return the trial at `address`, to report to. Raises UserError if its storage cannot be reached."""
    with exclusive(address.storage):
        pruner = json.dumps(address.pruner, sort_keys=True)
        return optuna.Trial(_study(address.storage, address.study, pruner, os.getpid()), address.id)


@lru_cache
def _study(url: str, name: str, pruner: str, process: int) -> optuna.Study:
    # the default sampler takes time to create, and a job never samples
    sampler = optuna.samplers.RandomSampler()
    made = instantiate(json.loads(pruner)) or optuna.pruners.NopPruner()
    storage = waited(url, lambda: open_storage(url))
    return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=made)


def _forked() -> None:
    global _threads, _depth
    _threads, _depth = threading.RLock(), 0  # another thread may have held it


os.register_at_fork(after_in_child=_forked)
logging.getLogger("alembic").setLevel(logging.ERROR)
