"""The data of a sweep: its jobs may be compared only if equal dataset configs gave equal data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snnexp.config import experiment_of
from snnexp.errors import UserError
from snnexp.files import read_json
from snnexp.lock import locked
from snnexp.rundir import other_data, write_json
from snnexp.trial.job import Address, Job

ATTRIBUTE = "data "  # begins the key under which the identity of data is kept


def check_data(job: Job, folder: Path, setting: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raise UserError if an earlier job of the sweep had other data with the same `setting`, a part of its config.

    The first job stores its `data`: in a study, in the storage, so that a continued study is compared as well; in a
    grid, in `folder`.
    """
    key = _key(setting)
    known = _in_study(job.trial, key, data) if job.trial else _in_folder(folder, key, data)
    if other := other_data(known, data):
        way_out = "choose another name with hydra.sweeper.study=NAME" if job.trial else "start the sweep again"
        raise UserError(f"an earlier job of this sweep {other}. Bring the old data back, or {way_out}")


def attribute_of(config: Mapping[str, Any]) -> str:
    """Return the attribute of a study that keeps the identity of the data of a run with this config."""
    return _key(setting_of(config))


def setting_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a run's config that determines its data."""
    return {"dataset": config["dataset"], "task": config["task"]["_target_"]}


def _key(setting: Mapping[str, Any]) -> str:
    text = json.dumps(experiment_of(setting), sort_keys=True, default=str)
    return f"{ATTRIBUTE}{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _in_study(trial: Address, key: str, data: Mapping[str, Any]) -> Any:
    from snnexp.trial import storage  # imported late, so that runs outside a study do not load optuna

    with storage.exclusive(trial.storage):
        study = storage.open_trial(trial).study
        known = study.user_attrs.get(key)
        if known is None:
            study.set_user_attr(key, dict(data))
    return known


def _in_folder(folder: Path, key: str, data: Mapping[str, Any]) -> Any:
    path = folder / "data.json"
    with locked(folder / ".data.lock"):
        known = read_json(path) or {}
        if not isinstance(known.get(key), dict):
            write_json(path, known | {key: data})
            return None
    return known[key]
