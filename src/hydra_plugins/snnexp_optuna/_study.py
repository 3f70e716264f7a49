"""Make the study of a sweep from its settings. All invalid input is rejected here, before the first job."""

import hashlib
import json
import logging
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.snnexp_optuna._compose import Composer
from hydra_plugins.snnexp_optuna._loop import Loop
from hydra_plugins.snnexp_optuna._owner import Owner
from hydra_plugins.snnexp_optuna._pause import Pause
from hydra_plugins.snnexp_optuna._rehearse import rehearse
from hydra_plugins.snnexp_optuna._report import report_study
from hydra_plugins.snnexp_optuna._seeds import seeds_of
from hydra_plugins.snnexp_optuna._sources import Wanted, sources
from hydra_plugins.snnexp_optuna._space import EACH, Space, space
from hydra_plugins.snnexp_optuna._start import enqueue, points_of
from hydra_plugins.snnexp_optuna._stop import stop_of
from hydra_plugins.snnexp_optuna._taken import take_over
from snnexp.address import sqlite
from snnexp.config import NOT_THE_EXPERIMENT, check_objective, flatten, folder_of, listed, without_hydra
from snnexp.errors import UserError, integer, number
from snnexp.sweep.direction import Direction, directions
from snnexp.sweep.parent import Parent
from snnexp.trial.dominated import Dominated
from snnexp.trial.outage import allow, impatient
from snnexp.trial.storage import exclusive, open_storage
from snnexp.trust import check_plain

# keys that may differ between machines that share a study, in addition to NOT_THE_EXPERIMENT
NOT_THE_STUDY = ("trainer.threads", "trainer.accelerator", "trainer.devices", "dataset.root")

log = logging.getLogger("snnexp.sweep")
OWN = "sweep."  # keys of the header of an option's YAML: # @sweep.alpha interval(0.5,4)


def sweep(
    given: Mapping[str, Any], config: DictConfig, loader: ConfigLoader, launcher: Launcher, arguments: Sequence[str]
) -> optuna.Study:
    """Run or continue the study described by `given`, the settings of hydra.sweeper.

    Raises UserError for invalid settings, and if no trial was completed.
    """
    settings: dict[str, Any] = {
        k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in given.items()
    }
    objective, chosen = _objective(config, settings)
    searched, fixed = search_space(settings["space"], config, loader, arguments)
    settings["parallel"] = _parallel(settings["parallel"], config)
    settings["subdir"] = OmegaConf.to_container(config.hydra.sweep)["subdir"]  # type: ignore[call-overload, index]
    start = points_of(settings["start"], searched, settings["n_trials"])
    pruner = _pruner(settings["pruner"], objective)
    seeds = seeds_of(settings["seeds"], int(config.seed))
    if seeds and any(d.key == "seed" for d in searched.dimensions):
        raise UserError(
            "seed is in the search space, and hydra.sweeper.seeds averages over seeds: leave one of them out"
        )
    rehearse(_sampler(settings["sampler"], int(config.seed), 0, searched), pruner, searched, chosen)
    identity = {"space": searched.described(), "objective": objective, "direction": chosen} | _base(config)
    identity |= {"seeds": list(seeds)} if seeds else {}
    name = settings["study"] or _name(config, identity)
    url = settings["storage"] or sqlite(folder_of(config, "outputs_dir") / "optuna.db")
    identity = json.loads(json.dumps(identity, default=str))  # as it is stored
    taken = sources(settings["take_over"], Wanted(name, identity, searched, config, loader, fixed, url, NOT_THE_STUDY))
    study = _open_study(url, name, chosen, identity)
    study.pruner, stop = pruner, stop_of(settings, study.directions)
    folder = Path(str(config.hydra.sweep.dir)).absolute()
    plain = without_hydra(config, resolve=True)
    # n_trials is a tag, because MLflow does not let a parameter change, and a study can be extended
    tags = {"task": "sweep", "sweep": "study", "study": name, "n_trials": str(settings["n_trials"])}
    parameters = {f"space.{k}": v for k, v in searched.described().items()}
    listed_as = {"name": name, "wanted": settings["n_trials"], "storage": url}
    key = study.user_attrs["key"]
    with (
        Parent(plain, folder, _title(config, name), parameters, tags, key=key, listed=listed_as) as parent,
        Owner(study, url, folder) as owner,
    ):
        allow(url, settings["wait"])
        with exclusive(url):
            told = take_over(study, taken)
            enqueue(study, start)
        for line in told:
            log.info(line)
        pause = Pause(settings["wait"])
        study.sampler = _sampler(settings["sampler"], int(config.seed), owner.rank, searched)
        loop = Loop(study, url, searched, fixed, settings, launcher, owner, parent, objective, stop, pause, seeds)
        loop.taken = told
        try:
            loop.run()
        except (Exception, KeyboardInterrupt):
            with impatient(), suppress(Exception):  # the storage may be away
                report_study(loop, config, loader)
            raise
        report_study(loop, config, loader)
        loop.check()
    return study


def _objective(config: DictConfig, settings: Mapping[str, Any]) -> tuple[str | list[str], list[Direction]]:
    """Return the metric (or metrics) and a direction for each. Raises UserError for invalid settings."""
    objective: Any = config.objective if isinstance(config.objective, str) else listed(config.objective)
    if not objective:
        raise UserError(f"objective={config.objective} is not allowed: a study needs a validation metric, or several")
    check_objective(objective)
    chosen = directions(objective, settings["direction"])
    checks: dict[str, Callable[[str, Any], object]] = {
        "n_trials": lambda n, v: integer(n, v, at_least=1),
        "retries": lambda n, v: integer(n, v, at_least=0),
        "max_failures": lambda n, v: integer(n, v, at_least=1),
        "parallel": lambda n, v: v is None or integer(n, v, at_least=1),
        "timeout": lambda n, v: v is None or number(n, v, "a number of seconds > 0, or null", above=0),
        "wait": lambda n, v: number(n, v, "a number of seconds >= 0", at_least=0),
        "silence": lambda n, v: number(n, v, "a number of seconds >= 1", at_least=1),
    }
    for name, check in checks.items():
        try:
            check(name, settings[name])
        except ValueError as error:
            raise UserError(f"hydra.sweeper.{error}") from error
    return objective, chosen


def search_space(
    given: Mapping[str, Any], config: DictConfig, loader: ConfigLoader, arguments: Sequence[str]
) -> tuple[Space, list[str]]:
    """Return the space and the fixed overrides, after composing each branch once.

    Raises UserError for a parameter or an option that does not exist.
    """
    choices = {key.split("@")[0]: str(value) for key, value in config.hydra.runtime.choices.items()}

    def context(key: str) -> str:
        value = choices.get(key, OmegaConf.select(config, key, default="???"))
        if value == "???":
            raise UserError(f"hydra.sweeper.space: a condition names {key}, which is neither a group nor a key")
        return str(value)

    parser = OverridesParser.create(config_loader=loader)

    def own(group: str, option: str) -> dict[str, str]:
        assert isinstance(loader, Composer)
        header = loader.header(config, f"{group}/{option}").items()
        return {key.removeprefix(OWN): text for key, text in header if key.startswith(OWN)}

    made, fixed = space(given, parser.parse_overrides(list(arguments)), parser, context, own)
    if not made.dimensions:
        raise UserError(_no_own_range(given, config))
    for params in made.branches():
        if not params:
            raise UserError(_no_range(made, config))
        overrides = made.overrides(params)
        try:
            loader.load_sweep_config(config, [*fixed, *overrides])
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"the search space is invalid: with {' '.join(overrides)}\n{error}") from error
    return made, fixed


def _no_own_range(given: Mapping[str, Any], config: DictConfig) -> str:
    """Say that the space is empty, and which override would give a range."""
    groups = [key.removesuffix(EACH) for key in given if key.endswith(EACH)]
    lines = [
        f"no range for {group}={config.hydra.runtime.choices[group]}: its YAML has no line such as "
        f"'# @{OWN}alpha interval(0.5,4)' at its top"
        for group in groups
        if group in config.hydra.runtime.choices
    ]
    examples = [line for group in groups for line in _examples(group, config)]
    if lines:
        return "hydra.sweeper.space has " + "\n".join([*lines, *examples])
    return "this sweep has no search space: give a range, e.g. surrogate.alpha='interval(0.5,4)'"


def _examples(group: str, config: DictConfig) -> list[str]:
    """Return a line with a range for each parameter of the chosen option that is a fraction above 0."""
    node = OmegaConf.select(config, group)
    numbers = {k: v for k, v in node.items() if isinstance(v, float) and v > 0} if isinstance(node, DictConfig) else {}
    return [
        f"give one on the command line, for example '{group}.{key!s}=tag(log,interval({value / 2:g},{value * 2:g}))'"
        for key, value in numbers.items()
    ]


def _no_range(searched: Space, config: DictConfig) -> str:
    """Say that no condition of the space holds, and which override would give a range."""
    lines = []
    branches = [(d.key.lstrip("+"), *d.when) for d in searched.dimensions if d.when]
    for other in dict.fromkeys(other for _, other, _ in branches):
        keys = ", ".join(dict.fromkeys(key for key, name, _ in branches if name == other))
        known = ", ".join(dict.fromkeys(value for _, name, values in branches if name == other for value in values))
        lines.append(f"no range for {other}={searched.context(other)}: {keys} has ranges for {other}={known}")
        lines += _examples(other, config)
    return "hydra.sweeper.space has " + "\n".join(lines)


def _parallel(given: int | None, config: DictConfig) -> int:
    if given is not None:
        return given
    if "joblib" in str(config.hydra.launcher._target_):
        import joblib

        return int(joblib.effective_n_jobs(config.hydra.launcher.n_jobs))
    return 1


def _pruner(given: Mapping[str, Any] | None, objective: str | list[str]) -> optuna.pruners.BasePruner:
    if given is None:
        return optuna.pruners.NopPruner()
    made = _made("pruner", given, optuna.pruners.BasePruner)
    if not isinstance(objective, str) and not isinstance(made, Dominated):
        raise UserError(
            f"hydra.sweeper.pruner={type(made).__name__} is not allowed: Optuna's pruners know one objective. "
            "With several, it must be {_target_:snnexp.trial.dominated.Dominated,by:3}, or null"
        )
    return made  # type: ignore[no-any-return]


def _sampler(given: Mapping[str, Any] | None, seed: int, rank: int, searched: Space) -> optuna.samplers.BaseSampler:
    """Return the sampler. Its seed differs between parents, or a resumed study would repeat its first points."""
    if given is not None and not isinstance(given, Mapping):
        _made("sampler", given, optuna.samplers.BaseSampler)  # raises UserError
    node = dict(given or {"_target_": "optuna.samplers.TPESampler", "seed": seed})
    # the seed of a GridSampler is the order of its grid, which must not change
    if node.get("seed") is not None and rank and not str(node.get("_target_")).endswith(".GridSampler"):
        node["seed"] = zlib.crc32(f"{node['seed']} {rank}".encode())
    if str(node.get("_target_")).endswith(".GridSampler") and "search_space" not in node:
        node["search_space"] = searched.grid()
    return _made("sampler", node, optuna.samplers.BaseSampler)  # type: ignore[no-any-return]


def _made(name: str, node: Mapping[str, Any], kind: type) -> Any:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(f"hydra.sweeper.{name}={node} is not allowed: it must be {{_target_: optuna.{name}s...., ...}}")
    check_plain(node, f"hydra.sweeper.{name}")
    try:
        made = instantiate(node, _convert_="all")
    except Exception as error:  # constructors raise many kinds of errors
        raise UserError(f"hydra.sweeper.{name} cannot be created: {error.__cause__ or error}") from error
    if not isinstance(made, kind):
        raise UserError(f"hydra.sweeper.{name}: {node.get('_target_')} is not an Optuna {kind.__name__}")
    return made


def _base(config: DictConfig) -> dict[str, Any]:
    """Return the config values shared by all trials of a study, unresolved, because folders differ between machines."""
    plain = without_hydra(config, resolve=False)
    flat = flatten({k: v for k, v in plain.items() if k not in NOT_THE_EXPERIMENT})
    return {key: value for key, value in flat.items() if key not in NOT_THE_STUDY}


def _name(config: DictConfig, identity: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{_title(config, 'sweep')}-{digest}"


def _title(config: DictConfig, otherwise: str) -> str:
    return str(config.hydra.runtime.choices.get("sweep") or otherwise)


def _open_study(url: str, name: str, wanted: list[Direction], identity: Mapping[str, Any]) -> optuna.Study:
    """Create or open the study. Raises UserError if a study of that name has another space or configuration."""
    storage = open_storage(url)
    with exclusive(url):
        study = optuna.create_study(storage=storage, study_name=name, directions=wanted, load_if_exists=True)
        for kept, value in {"key": uuid.uuid4().hex, "identity": identity}.items():
            if kept not in study.user_attrs:
                study.set_user_attr(kept, value)
    if differ := _difference(study.user_attrs["identity"], identity):
        raise UserError(
            f"hydra.sweeper.study={name} exists already with other settings: {differ}\n"
            "Their trials could not be compared: choose another name with hydra.sweeper.study=NAME (null: automatic)"
        )
    return study


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
    return "; ".join(f"{key} was {then.get(key)}, is now {now.get(key)}" for key in keys[:3])
