"""The boundary between the user's YAML and the program: where the configs are, and checks that need no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from snnexp.errors import InvalidValue, UserError
from snnexp.surrogate.limits import check_arguments

FOLDERS = ("outputs_dir", "data_dir", "cache_dir")
SWITCH_OR_PATH = ("resume",)
# What may differ between a run and its resumption: where things go, not what is computed.
NOT_THE_EXPERIMENT = ("resume", "tracking", "objective", *FOLDERS)


def conf_dir() -> str:
    """Absolute path of the YAML groups: beside the code in a wheel, at the repository's root in a checkout."""
    here = Path(__file__).resolve().parent
    return str(here / "conf" if (here / "conf").is_dir() else here.parents[1] / "conf")


def checked(cfg: DictConfig) -> dict[str, Any]:
    """The composed config as plain containers, resolved, with absolute folders.

    Raises UserError for a value of the wrong type, a missing mandatory value, or an interpolation that leads nowhere.
    """
    _check_types(cfg)
    for key in FOLDERS:
        cfg[key] = str(Path(str(cfg[key])).expanduser().absolute())
    if cfg.checkpoint is not None:
        cfg.checkpoint = str(Path(str(cfg.checkpoint)).expanduser().absolute())
        if not Path(cfg.checkpoint).is_file():
            raise UserError(f"checkpoint={cfg.checkpoint}: there is no such file")
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"{missing[0]} has no value: give one with {missing[0]}=VALUE")
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    try:  # SpikingJelly accepts what turns gradients around
        check_arguments(config["surrogate"]["_target_"], config["surrogate"])
    except InvalidValue as error:
        raise UserError(f"surrogate.{error.name}={error.value} is not allowed: it must be {error.allowed}") from error
    return config


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level: {"a": {"b": 1}} -> {"a.b": 1}. Lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def fingerprint(config: Mapping[str, Any]) -> str:
    """Digest of everything that determines a run's result; equal for a run and its resumption."""
    kept = {key: value for key, value in config.items() if key not in NOT_THE_EXPERIMENT}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _check_types(cfg: DictConfig) -> None:
    """Type by example: an overridden value must have the type of the default that it replaces.

    Costs a second composition, so only where a value (not a group) was overridden.
    """
    hydra = HydraConfig.get()
    if not _sets_values(list(hydra.overrides.task)) and "experiment" not in hydra.runtime.choices:
        return
    choices = [
        f"{group.split('@')[0]}={option}"
        for group, option in hydra.runtime.choices.items()
        if option is not None and not group.startswith("hydra/") and group not in ("experiment", "sweep")
    ]
    example = (
        GlobalHydra.instance()
        .config_loader()
        .load_configuration(
            config_name=str(hydra.job.config_name), overrides=choices, run_mode=RunMode.RUN, from_shell=False
        )
    )
    for key, default, value in _pairs(example, cfg):
        if key not in SWITCH_OR_PATH and not _same_type(default, value):
            raise UserError(f"{key}={_shown(value)} is not allowed: it must be {_kind(default)} (default {default})")


def _sets_values(overrides: list[str]) -> bool:
    groups = set(HydraConfig.get().runtime.choices)
    return any(o.split("=", 1)[0].lstrip("+~") not in groups for o in overrides)


def _pairs(example: DictConfig, cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in example:
        key = str(key)
        name = f"{prefix}{key}"
        if key == "hydra" or key not in cfg or any(OmegaConf.is_missing(c, key) for c in (example, cfg)):
            continue
        if OmegaConf.is_interpolation(example, key) or OmegaConf.is_interpolation(cfg, key):
            continue
        default, value = example[key], cfg[key]
        if isinstance(default, DictConfig) and isinstance(value, DictConfig):
            yield from _pairs(default, value, f"{name}.")
        else:
            yield name, default, value


def _same_type(default: Any, value: Any) -> bool:
    if default is None or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    # an int may be given as a list of ints (timesteps=[1,2,4]), a word as a list of words (objective=[a,b])
    if isinstance(value, ListConfig) and not isinstance(default, ListConfig | DictConfig):
        return all(_same_type(default, item) for item in value)
    return isinstance(value, type(default)) or (isinstance(default, ListConfig) and not isinstance(value, DictConfig))


def _kind(default: Any) -> str:
    kinds = {bool: "true or false", int: "an integer", float: "a number", str: "text", DictConfig: "a group of keys"}
    return kinds.get(type(default), "a list")


def _shown(value: Any) -> str:
    return str(OmegaConf.to_container(value)) if isinstance(value, DictConfig | ListConfig) else str(value)
