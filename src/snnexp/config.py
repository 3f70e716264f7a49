"""Find the YAML configs, and check the composed config without loading torch."""

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

from snnexp.errors import UserError, told
from snnexp.surrogate.limits import check_arguments

FOLDERS = ("outputs_dir", "data_dir", "cache_dir")
# The groups that can name and tag a run, in the order of a run's name; those of a training; and all.
TAGS = ("task", "model", "dataset", "neuron", "surrogate", "conversion", "calibration", "mitigation")
TRAINING: tuple[str, ...] = ("model", "dataset", "neuron", "surrogate", "loss", "optimizer", "scheduler", "trainer")
GROUPS = (*dict.fromkeys((*TAGS, *TRAINING)), "tracking")
KEYS = ("seed", "timesteps", "resume", "checkpoint", "objective", *FOLDERS)
# These may differ between a run and its resumption: they say where things are, not what is computed.
NOT_THE_EXPERIMENT = ("resume", "tracking", "objective", *FOLDERS)
RUN = re.compile(r"runs:/(\w+)")  # an MLflow run as a checkpoint
PLACES = ("dataset.root", "dataset.cache")
ANY_IMAGES = "image_folder"  # a dataset, or its source, whose content depends on `dataset.root`
DEFAULT_OBJECTIVE = "val/accuracy"  # of conf/config.yaml; a task that does not give it may ignore it

# Hydra makes its directories before the config can be checked, so `~` is resolved while the config is composed.
OmegaConf.register_new_resolver("folder", lambda path: str(Path(str(path)).expanduser().absolute()), replace=True)


def conf_dir() -> str:
    """Return the folder of the YAML groups: beside the code in a wheel, at the repository's root in a checkout."""
    here = Path(__file__).resolve().parent
    return str(here / "conf" if (here / "conf").is_dir() else here.parents[1] / "conf")


def checked_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the composed config as plain containers, resolved, with absolute folders.

    Raises UserError for a value of the wrong type, a missing mandatory value, or a broken interpolation.
    """
    _check_complete(cfg)
    _check_types(cfg)
    absolute(cfg)
    if cfg.checkpoint is not None and not RUN.fullmatch(cfg.checkpoint):
        cfg.checkpoint = str(Path(cfg.checkpoint).expanduser().absolute())
        if not Path(cfg.checkpoint).is_file():
            if Path(cfg.checkpoint).is_dir():
                raise UserError(f"checkpoint={cfg.checkpoint}: it is a folder: name the file in it, such as best.pt")
            raise UserError(f"checkpoint={cfg.checkpoint}: there is no such file, and it is not runs:/<run id> either")
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"{missing[0]} has no value: give one with {missing[0]}=VALUE")
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    with told("surrogate."):  # SpikingJelly itself accepts values that reverse the gradient
        check_arguments(config["surrogate"]["_target_"], config["surrogate"])
    return config


def absolute(cfg: DictConfig) -> None:
    """Make the folders independent of the working directory. Raises UserError for a path that cannot be used."""
    for key in FOLDERS:
        cfg[key] = str(folder_of(cfg, key))


def folder_of(cfg: DictConfig, key: str) -> Path:
    """Return the folder that `key` names, absolute. Raises UserError for a value that is not a usable path."""
    path = cfg[key]
    if not isinstance(path, str):
        raise UserError(f"{key}={_shown(path)} is not allowed: it must be the path of a folder")
    if "${" in path:
        raise UserError(f"{key}={path} is not allowed: ${{ in a path would be read as a reference to another key")
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes that the locale's encoding does not know
        raise UserError(
            f"{key}={path!a} is not allowed: its name cannot be read in this locale (try LC_ALL=C.UTF-8)"
        ) from None
    return Path(path).expanduser().absolute()


def check_objective(names: object) -> None:
    """Raise UserError unless every objective is a validation metric."""
    for name in listed(names):
        if not isinstance(name, str) or not name.startswith("val/"):
            why = "such as val/accuracy (choosing by test data would invalidate the test)"
            raise UserError(f"objective={name} is not allowed: it must be a validation metric {why}")


def listed(names: Any) -> list[Any]:
    """Return the objective's metrics as a list: one, several, or none."""
    return list(names) if isinstance(names, list | ListConfig) else [] if names is None else [names]


def quoted(value: Any) -> str:
    """Return `value` as the text of an override, which Hydra reads back as the same value.

    Strings are always quoted, because Hydra's own encoder drops quotes, and then `a,b` is a sweep and `'1'` a number.
    The string `???` is a missing value to OmegaConf, with or without quotes.
    """
    if value is None:
        return "null"
    if isinstance(value, str):
        # ${...} is an interpolation even inside quotes: escape it, and the backslashes before it
        escaped = re.sub(r"(\\*)\$\{", lambda m: 2 * m[1] + r"\${", value)
        return QuotedString(escaped, Quote.single).with_quotes()
    if isinstance(value, list | tuple):
        return "[" + ",".join(quoted(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(key)}:{quoted(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def _key(key: Any) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", "null" if key is None else str(key))  # quotes are not allowed there


def without_hydra(cfg: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """Return a config without Hydra's part, as plain containers; without `resolve`, interpolations stay text."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return OmegaConf.to_container(own, resolve=resolve)  # type: ignore[return-value]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings: {"a": {"b": 1}} -> {"a.b": 1}. Lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def experiment_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that determine a run's result, flattened: all but places, tracking and the objective."""
    kept = flatten({key: value for key, value in config.items() if key not in NOT_THE_EXPERIMENT})
    return {key: value for key, value in kept.items() if not is_place(key, kept)}


def is_place(key: str, flat: Mapping[str, Any]) -> bool:
    """Return whether `key` of a flattened config says where the data are, and not which data."""
    any_images = flat.get("dataset.source") == ANY_IMAGES or str(flat.get("dataset._target_")).endswith(ANY_IMAGES)
    return key in PLACES and not (any_images and key == "dataset.root")


def fingerprint(config: Mapping[str, Any]) -> str:
    """Return a digest of all that determines a run's result; it is equal for a run and its resumption."""
    kept = experiment_of(config)
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _check_complete(cfg: DictConfig) -> None:
    for given in HydraConfig.get().overrides.task:
        group, _, several = given.partition("=[")
        if several and group in GROUPS:  # Hydra would merge the options
            wanted = f"one option; a run for each: snnexp -m {group}={several.rstrip(']')}"
            raise UserError(f"{given} is not allowed: it must be {wanted}")
    for group in GROUPS:
        chosen = OmegaConf.select(cfg, group, throw_on_missing=False)
        if not isinstance(chosen, DictConfig) or "_target_" not in list(chosen):
            option = f"choose one of its options with {group}=OPTION, a YAML file with a _target_ (see --help)"
            raise UserError(f"{group}={_shown(chosen)} is not allowed: {option}")
    for key in KEYS:
        if key not in cfg:
            raise UserError(f"{key} is missing: it cannot be deleted")
    if not isinstance(cfg.resume, bool | str):
        raise UserError(f"resume={_shown(cfg.resume)} is not allowed: it must be true, false or a run directory")
    if not isinstance(cfg.checkpoint, str | None):
        allowed = "a file of weights, runs:/<run id>, or null"
        raise UserError(f"checkpoint={_shown(cfg.checkpoint)} is not allowed: it must be {allowed}")


def _check_types(cfg: DictConfig) -> None:
    """Check types by example: an overridden value must have the type of the default that it replaces."""
    if (example := defaults()) is None:
        return
    for key, default, value in _pairs(example, cfg):
        if key not in ("resume", "checkpoint", "objective", *FOLDERS) and not _same_type(default, value):
            hint = "; as text: quote it twice, \"'...'\"" if isinstance(default, str) and value is not None else ""
            kind = _kind(default)
            raise UserError(f"{key}={_shown(value)} is not allowed: it must be {kind} (default {default}){hint}")


def defaults() -> DictConfig | None:
    """Return the config of this job with only the command line's choices of groups; None if nothing else was set.

    It is composed once for each choice of groups, and a fork of this process finds it.
    """
    hydra = HydraConfig.get()
    groups = set(hydra.runtime.choices)
    chosen = [o for o in hydra.overrides.task if o.split("=", 1)[0].lstrip("+~").split("@")[0] in groups]
    if len(chosen) == len(hydra.overrides.task):
        return None
    return _example(GlobalHydra.instance().config_loader(), str(hydra.job.config_name), tuple(chosen))


@lru_cache(maxsize=32)  # the jobs of a sweep share few choices of groups
def _example(loader: ConfigLoader, name: str, chosen: tuple[str, ...]) -> DictConfig:
    return loader.load_configuration(config_name=name, overrides=list(chosen), run_mode=RunMode.RUN, from_shell=False)


def _pairs(example: DictConfig, cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, default, value) for every value that both configs have and the user may have set."""
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
    if default is None or value is None:  # null is allowed where it is the default
        return default is None
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    # an int may be given as a list of ints (timesteps=[1,2,4]), a word as a list of words (objective=[a,b])
    if isinstance(value, ListConfig) and not isinstance(default, ListConfig | DictConfig):
        return all(_same_type(default, item) for item in value)
    return isinstance(value, type(default))


def _kind(default: Any) -> str:
    kinds = {bool: "true or false", int: "an integer", float: "a number", str: "text", DictConfig: "a group of keys"}
    return kinds.get(type(default), "a list")


def _shown(value: Any) -> str:
    return str(OmegaConf.to_container(value)) if isinstance(value, DictConfig | ListConfig) else str(value)
