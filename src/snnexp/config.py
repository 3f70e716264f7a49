"""The boundary between the user's YAML and the program: where the configs are, and checks that need no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from snnexp.errors import InvalidValue, UserError
from snnexp.surrogate.limits import check_arguments

FOLDERS = ("outputs_dir", "data_dir", "cache_dir")
GROUPS = (
    "task",
    "dataset",
    "model",
    "neuron",
    "surrogate",
    "conversion",
    "calibration",
    "mitigation",
    "loss",
    "optimizer",
    "scheduler",
    "trainer",
    "tracking",
)
KEYS = ("seed", "timesteps", "resume", "checkpoint", "objective", *FOLDERS)
# What may differ between a run and its resumption: where things are, not what is computed.
NOT_THE_EXPERIMENT = ("resume", "tracking", "objective", *FOLDERS)
RUN = re.compile(r"runs:/(\w+)")  # an earlier run, as a checkpoint
PLACES = ("dataset.root", "dataset.cache")
ANY_IMAGES = "image_folder"  # a dataset, or the source of one, which `dataset.root` chooses

# Hydra makes its directories before anyone can look at the config: so `~` is resolved where it is composed.
OmegaConf.register_new_resolver("folder", lambda path: str(Path(str(path)).expanduser().absolute()), replace=True)


def conf_dir() -> str:
    """Absolute path of the YAML groups: beside the code in a wheel, at the repository's root in a checkout."""
    here = Path(__file__).resolve().parent
    return str(here / "conf" if (here / "conf").is_dir() else here.parents[1] / "conf")


def checked(cfg: DictConfig) -> dict[str, Any]:
    """The composed config as plain containers, resolved, with absolute folders.

    Raises UserError for a value of the wrong type, a missing mandatory value, or an interpolation that leads nowhere.
    """
    _check_complete(cfg)
    _check_types(cfg)
    absolute(cfg)
    if cfg.checkpoint is not None and not RUN.fullmatch(cfg.checkpoint):
        cfg.checkpoint = str(Path(cfg.checkpoint).expanduser().absolute())
        if not Path(cfg.checkpoint).is_file():
            raise UserError(f"checkpoint={cfg.checkpoint}: there is no such file, and it is not runs:/<run id> either")
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"{missing[0]} has no value: give one with {missing[0]}=VALUE")
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    try:  # SpikingJelly accepts what turns gradients around
        check_arguments(config["surrogate"]["_target_"], config["surrogate"])
    except InvalidValue as error:
        raise error.told(f"surrogate.{error.name}") from error
    return config


def absolute(cfg: DictConfig) -> None:
    """Make the folders independent of where the program stands."""
    for key in FOLDERS:
        cfg[key] = str(Path(str(cfg[key])).expanduser().absolute())


def check_objective(names: object) -> None:
    """Raises UserError for a metric that must not choose."""
    for name in listed(names):
        if not isinstance(name, str) or not name.startswith("val/"):
            raise UserError(
                f"objective={name} is not allowed: it must be a validation metric such as val/accuracy "
                "(choosing by test data would invalidate the test)"
            )


def listed(names: Any) -> list[Any]:
    """The objective's metrics: one, several, or none."""
    return list(names) if isinstance(names, list | ListConfig) else [] if names is None else [names]


def quoted(value: Any) -> str:
    """`value` as the text of an override, which reads back as the same value. Strings are always quoted: Hydra's
    own encoder drops quotes, and then `a,b` is a sweep and `'1'` a number.

    The string `???` cannot be told from a missing value in OmegaConf, whatever its quotes.
    """
    if value is None:
        return "null"
    if isinstance(value, str):
        # inside quotes, ${...} still is an interpolation: it is escaped, as are backslashes that lead up to it
        escaped = re.sub(r"(\\*)\$\{", lambda m: 2 * m[1] + r"\${", value)
        return QuotedString(escaped, Quote.single).with_quotes()
    if isinstance(value, list | tuple):
        return "[" + ",".join(quoted(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def without_hydra(cfg: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """The experiment's own part of a composed config as plain containers; unresolved, interpolations stay as text."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return OmegaConf.to_container(own, resolve=resolve)  # type: ignore[return-value]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level: {"a": {"b": 1}} -> {"a.b": 1}. Lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def experiment_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What determines a run's result, flattened: everything but places, tracking and the objective."""
    kept = flatten({key: value for key, value in config.items() if key not in NOT_THE_EXPERIMENT})
    return {key: value for key, value in kept.items() if not is_place(key, kept)}


def is_place(key: str, flat: Mapping[str, Any]) -> bool:
    """Whether `key` of a flattened config says where the data are, not which."""
    any_images = flat.get("dataset.source") == ANY_IMAGES or str(flat.get("dataset._target_")).endswith(ANY_IMAGES)
    return key in PLACES and not (any_images and key == "dataset.root")


def fingerprint(config: Mapping[str, Any]) -> str:
    """Digest of everything that determines a run's result; equal for a run and its resumption."""
    kept = experiment_of(config)
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _check_complete(cfg: DictConfig) -> None:
    for group in GROUPS:
        chosen = OmegaConf.select(cfg, group, throw_on_missing=False)
        if not isinstance(chosen, DictConfig) or "_target_" not in list(chosen):
            raise UserError(
                f"{group}={_shown(chosen)} is not allowed: choose one of its options with {group}=OPTION, "
                "a YAML file with a _target_ (see --help)"
            )
    for key in KEYS:
        if key not in cfg:
            raise UserError(f"{key} is missing: it cannot be deleted")
    for key in FOLDERS:
        if not isinstance(cfg[key], str):
            raise UserError(f"{key}={_shown(cfg[key])} is not allowed: it must be the path of a folder")
    if not isinstance(cfg.resume, bool | str):
        raise UserError(f"resume={_shown(cfg.resume)} is not allowed: it must be true, false or a run directory")
    if not isinstance(cfg.checkpoint, str | None):
        raise UserError(
            f"checkpoint={_shown(cfg.checkpoint)} is not allowed: it must be a file of weights, runs:/<run id>, or null"
        )


def _check_types(cfg: DictConfig) -> None:
    """Type by example: an overridden value must have the type of the default that it replaces.

    The defaults are composed anew with the command line's choices of groups alone, so this costs a second composition,
    and only where a value was overridden.
    """
    hydra = HydraConfig.get()
    groups = set(hydra.runtime.choices)
    chosen = [o for o in hydra.overrides.task if o.split("=", 1)[0].lstrip("+~").split("@")[0] in groups]
    if len(chosen) == len(hydra.overrides.task):
        return
    example = _example(GlobalHydra.instance().config_loader(), str(hydra.job.config_name), tuple(chosen))
    for key, default, value in _pairs(example, cfg):
        if key not in ("resume", "checkpoint", "objective", *FOLDERS) and not _same_type(default, value):
            hint = "; as text: quote it twice, \"'...'\"" if isinstance(default, str) and value is not None else ""
            kind = _kind(default)
            raise UserError(f"{key}={_shown(value)} is not allowed: it must be {kind} (default {default}){hint}")


@lru_cache(maxsize=32)  # a sweep's jobs in one process have few choices of groups
def _example(loader: ConfigLoader, name: str, chosen: tuple[str, ...]) -> DictConfig:
    return loader.load_configuration(config_name=name, overrides=list(chosen), run_mode=RunMode.RUN, from_shell=False)


def _pairs(example: DictConfig, cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, default, value) of every value that both have and the user may have set."""
    for key in example:
        key = str(key)
        name = f"{prefix}{key}"
        if key == "hydra" or key not in cfg or any(OmegaConf.is_missing(c, key) for c in (example, cfg)):
            continue
        if OmegaConf.is_interpolation(cfg, key):
            continue
        default, value = example[key], cfg[key]
        if isinstance(default, DictConfig) and isinstance(value, DictConfig):
            yield from _pairs(default, value, f"{name}.")
        else:
            yield name, default, value


def _same_type(default: Any, value: Any) -> bool:
    if default is None or value is None:  # null is a value where it is the default
        return default is None
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
