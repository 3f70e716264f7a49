"""Read the records of runs, from their folders or from MLflow."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snnexp.config import GROUPS, KEYS
from snnexp.errors import UserError
from snnexp.files import opened, read_json
from snnexp.origin import ORIGIN
from snnexp.tracking import Store, Stored, Tracker
from snnexp.trial.place import run_of

RUN_ID = re.compile(r"(?:runs:/)?([0-9a-f]{32})")


@dataclass(frozen=True)
class Recorded:
    """The record of a run: its resolved config, its origin ({} for runs of earlier versions) and its final metrics."""

    place: str
    config: dict[str, Any]
    origin: dict[str, Any]
    metrics: Mapping[str, float]


def recorded(where: str, key: str, tracker: Tracker) -> Recorded:
    """Return the record of the run `where`, its folder or its id in MLflow, which the key `key` of a task names.

    Raises UserError if there is none.
    """
    where, named = str(where), f"{key}={where}"
    folder = Path(where).expanduser()
    if folder.is_dir():
        folder = run_of(folder.absolute())
        return _read(folder, named, where, read_json(folder / "result.json") or {})
    if (found := RUN_ID.fullmatch(where)) is None:
        raise UserError(f"{named}: there is no such folder, and it is not the id of an MLflow run either")
    store = Store(tracker, named)
    if (run := store.run(found[1])) is None:
        raise UserError(f"{named}: there is no such run in {store.place}")
    return of_run(store, run, named)


def of_run(store: Store, run: Stored, named: str) -> Recorded:
    """Return the record of a run in MLflow, which `named` names in errors. Raises UserError if it has none."""
    with TemporaryDirectory() as scratch:
        for name in ("config.yaml", ORIGIN):
            store.file(run, name, Path(scratch))
        return _read(Path(scratch), named, run.run_id, run.metrics)


def _read(folder: Path, named: str, where: str, metrics: Mapping[str, float]) -> Recorded:
    try:
        with opened(folder / "config.yaml", 0, "rb") as file:
            config: Any = OmegaConf.to_container(OmegaConf.create(file.read().decode()), resolve=False)
    except FileNotFoundError:
        raise UserError(f"{named}: there is no record of a run (no config.yaml)") from None
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{named}: its config.yaml cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{named}: its config.yaml is no configuration")
    lacks = [key for key in KEYS if key not in config]
    lacks += [group for group in GROUPS if not isinstance(config.get(group), dict) or "_target_" not in config[group]]
    if lacks:
        raise UserError(f"{named}: its config.yaml lacks {', '.join(lacks)}: was it written by another version?")
    return Recorded(where, config, read_json(folder / ORIGIN) or {}, metrics)
