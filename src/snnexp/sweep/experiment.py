"""A job of a sweep as an experiment file, which composes to the same config as the job."""

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from snnexp.config import flatten, without_hydra
from snnexp.files import read_json, replace
from snnexp.masking import masked
from snnexp.origin import ORIGIN
from snnexp.sweep.command import places
from snnexp.trial.place import run_of

NOT_KEPT = ("sweep", "experiment")  # groups whose values are written out


def experiment(loader: ConfigLoader, config: DictConfig, overrides: Sequence[str], comment: str) -> str:
    """Return a job as the text of an experiment file: its options, and the values that differ from their defaults.

    `config` is the config of the multirun. Groups that were added with + or removed with ~ are added or removed. YAML
    cannot delete a key, so a group with a deleted key is written out in full, in place of its option.
    """
    job = loader.load_sweep_config(config, list(overrides))
    name = str(config.hydra.job.config_name)
    default, chosen = _choices(_composed(loader, name, [])), _choices(job)
    written: set[str] = set()
    while True:
        options = {group: option for group, option in chosen.items() if option is not None and group not in written}
        removed = [group for group, option in default.items() if option is not None and group not in options]
        lines = [f"{'' if group in default else '+'}{group}={option}" for group, option in options.items()]
        plain = _composed(loader, name, [*lines, *(f"~{group}" for group in removed)])
        there, wanted = (flatten(without_hydra(made, resolve=False)) for made in (plain, job))
        deleted = {key.split(".")[0] for key in there if _deleted(key, wanted)}
        holding = {group for group in options if group.split("@")[-1].split("/")[0] in deleted}
        more = holding or {group for group in options if deleted and group not in default}
        if not more:
            break
        written |= more
    added = [{f"/{group}": option} for group, option in options.items() if group not in default]
    replaced = {**{group: option for group, option in options.items() if group in default}, **dict.fromkeys(removed)}
    defaults = {"defaults": [*added, *({f"override /{group}": option} for group, option in replaced.items())]}
    placed = places(config.hydra.overrides.task)
    own = {k: value for k, value in wanted.items() if k not in placed and (k not in there or there[k] != value)}
    values = _nested(own)
    text = yaml.safe_dump(defaults, sort_keys=False)
    text += yaml.safe_dump(masked(values), sort_keys=False) if values else ""
    return f"# @package _global_\n# {comment}\n{text}"


def threads_of(folder: Path | None) -> list[str]:
    """Return the override for the number of threads that the job in `folder` used: the rounding depends on it.

    Returns [] if there is no record, or not on this machine.
    """
    if folder is None:
        return []
    threads = (read_json(run_of(folder) / ORIGIN) or {}).get("threads")
    return [f"trainer.threads={threads}"] * isinstance(threads, int)


def write_experiment(folder: Path, name: str, text: str) -> None:
    """Write an experiment file where `--config-dir FOLDER` finds it."""
    (folder / "experiment").mkdir(exist_ok=True)
    replace(folder / "experiment" / f"{name}.yaml", text)


def _composed(loader: ConfigLoader, name: str, overrides: list[str]) -> DictConfig:
    return loader.load_configuration(config_name=name, overrides=overrides, run_mode=RunMode.RUN, from_shell=False)


def _choices(made: DictConfig) -> dict[str, Any]:
    """Return {group: option} without the groups of Hydra; an option may be a list of options."""
    chosen: Any = OmegaConf.to_container(made.hydra.runtime.choices)
    return {g: option for g, option in chosen.items() if not g.startswith("hydra/") and g not in NOT_KEPT}


def _deleted(key: str, wanted: Mapping[str, Any]) -> bool:
    """Return whether `wanted`, a flattened config, has neither `key` nor a plain value above it, nor keys below it."""
    above = [key[:end] for end, letter in enumerate(key) if letter == "."]
    replaced = any(name in wanted and wanted[name] != {} for name in above)
    return key not in wanted and not replaced and not any(name.startswith(f"{key}.") for name in wanted)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        reduce(lambda node, part: node.setdefault(part, {}), path, nested)[last] = value
    return nested
