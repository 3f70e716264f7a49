"""Check the names in files of other people: a config's `_target_` runs whatever it names.

Three kinds of files are checked: configuration files from outside snnexp (`guard`), configs that come with runs
(`check_config`, `check_targets`), and stored networks (`allowed`). They may name classes of known packages and the
user's own code: what Python finds but no installer put there, such as a folder on PYTHONPATH. The environment variable
SNNEXP_TRUSTED adds installed packages, and folders whose configuration files are not checked (docs/security.md).
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import _locate
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from snnexp.config import conf_dir
from snnexp.errors import UserError

PACKAGES = ("snnexp", "torch", "torchvision", "spikingjelly", "optuna")
TRUSTED = "SNNEXP_TRUSTED"
# Configuration files of others may name subclasses of these in PACKAGES; constructors of other classes may do anything.
KINDS = {
    "torch.nn.modules.module.Module",
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "optuna.samplers._base.BaseSampler",
    "optuna.pruners._base.BasePruner",
}
FUNCTIONS = ("torchvision.models.", "spikingjelly.activation_based.model.")  # whose functions make networks
# Hydra's other keys can set environment variables, run commands or name classes.
HYDRA = ("job", "launcher", "mode", "output_subdir", "run", "sweep", "sweeper")
JOB = ("name",)
LAUNCHER = (
    *("n_jobs", "timeout_min", "partition", "qos", "account", "constraint", "name", "nodes", "tasks_per_node"),
    *("cpus_per_task", "gpus_per_node", "mem_gb", "array_parallelism", "max_num_timeout"),
)
ADDRESSES = ("uri", "storage")
TARGET = re.compile(r"(.*\.)?_target_")


def guard() -> type[ConfigSource]:
    """Check each configuration file that Hydra loads from outside snnexp's own folder; return Hydra's reader of files.

    Loading one raises UserError if it names code that is not trusted, sets keys of Hydra that can run code, or names
    the server of a store, which would be sent the user's credentials.
    """
    Plugins.instance()  # makes the reader, which is not the class that can be imported
    source = SourcesRegistry.instance().resolve("file")
    load = source.load_config
    if hasattr(load, "__wrapped__"):
        return source

    @wraps(load)
    def checked(self: ConfigSource, config_path: str) -> ConfigResult:
        try:
            result = load(self, config_path)
        except ValueError as error:  # of its header
            raise UserError(f"{Path(self.path) / config_path}: {error}; a header line is # @KEY VALUE") from error
        file = (Path(self.path) / f"{config_path.removesuffix('.yaml')}.yaml").resolve()
        known = [Path(conf_dir()), Path(conf_dir()) / "sweep", *_trusted()[1]]  # conf/sweep is a link
        if not any(file.is_relative_to(folder.resolve()) for folder in known):
            _check_file(Path(self.path), file, Path(config_path), result)
        return result

    source.load_config = checked  # type: ignore[method-assign]
    return source


def check_file(folder: Path, name: str) -> None:
    """Raise UserError if FOLDER/NAME.yaml is not allowed as a configuration file from outside snnexp."""
    guard()(provider="check", path=f"file://{folder}").load_config(name)


def check_config(config: Any, source: str) -> None:
    """Raise UserError unless `config` (plain containers), a whole config that comes with a run, may be run.

    It may name what a configuration file from outside may name, and no text may be an interpolation.
    """
    check_plain(config, source)
    _check_entries(config, source, "Give such values on the command line")


def check_plain(config: Any, source: str) -> None:
    """Raise UserError if a text in `config` (plain containers, resolved) would be read as a reference once more."""
    for path, _, value in _entries(config):
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{source}: {path}={value} is not allowed: it must be a plain value, without ${{")


def check_targets(config: Any, kind: type, source: str) -> None:
    """Raise UserError unless `config` (plain containers) of the file `source` may be instantiated.

    Each `_target_` in it must be allowed (see `allowed`), and no text may be an interpolation, which could resolve to
    one.
    """
    check_plain(config, source)
    for _, key, value in _entries(config):
        if key == "_target_":
            allowed(value, kind, source)


def allowed(target: object, kind: type, source: str, known: Sequence[str] = PACKAGES) -> type:
    """Return the class that `target`, a dotted name in the file `source`, names.

    Raises UserError unless it is a subclass of `kind` in one of the packages `known` or in code that the user trusts.
    """
    top = str(target).split(".")[0]
    strange = top in PACKAGES and not str(target).startswith(tuple(f"{name}." for name in known))
    made = _attribute(str(target)) if _may_be_named(str(target)) and not strange else None
    if not (inspect.isclass(made) and issubclass(made, kind) and _belongs(made, top)):
        raise _refusal(target, source, f"a {kind.__name__} class of {', '.join(known)}")
    return made


def _check_file(folder: Path, file: Path, name: Path, result: ConfigResult) -> None:
    """Raise UserError if `file`, the option `name` of somebody else, could run code that is not trusted."""
    config: Any = OmegaConf.to_container(result.config)
    section = config.get("hydra") if isinstance(config, dict) else None
    strange = _strange(section, HYDRA, "hydra")
    if not strange and isinstance(section, dict):
        strange = _strange(section.get("launcher"), LAUNCHER, "hydra.launcher")
        strange = strange or _strange(section.get("job"), JOB, "hydra.job")
    words = [str(result.header.get("package") or ""), *name.parts, *file.relative_to(file.anchor).parts[-2:]]
    if strange or any(re.search(r"\bhydra\b", word) for word in words):
        raise UserError(
            f"{file} sets {strange or 'a part of hydra'}, which is not allowed in a configuration file from outside "
            f"snnexp: it may set {', '.join(f'hydra.{key}' for key in HYDRA)}. {_way_out(folder)}"
        )
    for entry in _texts(config.get("defaults") if isinstance(config, dict) else None):
        plain = re.fullmatch(r"(override )?/?hydra/[\w/]+", entry)
        if not plain and (re.search(r"\bhydra\b", entry) or ("@" in entry and "${" in entry)):
            raise UserError(f"{file}: {entry} is not allowed in the defaults: it leads into Hydra. {_way_out(folder)}")
    _check_entries(config, str(file), _way_out(folder))


def _strange(section: Any, known: Sequence[str], prefix: str) -> str:
    """Return the first key of a section that is not known, with its prefix; "" if all are."""
    if not isinstance(section, dict):
        return "" if section is None else prefix
    return next((f"{prefix}.{key}" for key in sorted(map(str, section)) if key not in known), "")


def _texts(node: Any) -> Iterator[str]:
    """Yield all keys and texts in nested containers."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


def _check_entries(config: Any, source: str, way_out: str) -> None:
    """Raise UserError if an entry of `config` names code that is not trusted, or could hide what it does."""
    for path, key, value in _entries(config):
        if TARGET.fullmatch(key.strip()) and value != "???" and not _may_be_made(str(value)):
            expected = "one that snnexp's own files name, or a network, optimiser, sampler or the like of "
            raise _refusal(value, source, expected + ", ".join(PACKAGES))
        if why := _hidden(path, key, value if isinstance(value, str) else ""):
            raise UserError(f"{source}: {path}={value} is not allowed: {why}. {way_out}")


def _hidden(path: str, key: str, text: str) -> str:
    """Return why an entry could hide what it does; "" if it could not."""
    if key == "_args_" or "_target_" in text:
        return "names of code stand under the key _target_ alone, with arguments by name"
    if re.search(r"\$\{\s*oc\.(create|decode)|\$\{[^}:]*\$\{|\\\$\{", text):
        return "a reference is plain, without oc.create, oc.decode, a reference in its name, or a backslash"
    if re.search(r"\bhydra\b", key) and path != "hydra" and not path.startswith("defaults."):
        return "keys of Hydra stand in the section hydra alone"
    address = key.rpartition(".")[2] in ADDRESSES
    if address and ("${" in text or ":" in text) and not text.startswith(("sqlite:///", "journal:")):
        return "name a server on the command line, so that no file of others decides who gets your password"
    return ""


@lru_cache(maxsize=256)
def _may_be_made(target: str) -> bool:
    """Return whether a configuration file of others may have this `_target_`.

    A name that leads nowhere is left to Hydra, which reports it.
    """
    if target in _own_targets():
        return True
    top = target.split(".")[0]
    if not _may_be_named(target):
        return re.fullmatch(r"\w+(\.\w+)*", target) is not None and find_spec(top) is None
    made = _attribute(target)
    if made is None or (top not in PACKAGES and _belongs(made, top)):
        return True
    kinds = {f"{base.__module__}.{base.__qualname__}" for base in getattr(made, "__mro__", ())}
    return bool(kinds & KINDS) or (callable(made) and str(made.__module__).startswith(FUNCTIONS))


@lru_cache(maxsize=1)
def _own_targets() -> set[str]:
    """Return what snnexp's own configuration files name."""
    folders = os.walk(conf_dir(), followlinks=True)  # conf/sweep is a link
    files = [Path(folder) / name for folder, _, names in folders for name in names if name.endswith(".yaml")]
    return {name for file in files for name in re.findall(r"_target_: *([\w.]+)", file.read_text())}


def _attribute(target: str) -> Any:
    """Return what Hydra would find under a dotted name; None if there is no such thing."""
    try:
        return _locate(target)
    except Exception:  # an import may raise anything
        return None


def _belongs(made: object, package: str) -> bool:
    """Return whether a class or function was written in `package`, and not only imported there."""
    return str(getattr(made, "__module__", None)).split(".")[0] == package


def _may_be_named(target: str) -> bool:
    """Return whether the package of a dotted name is known, the user's own, or trusted."""
    top, *rest = target.split(".")
    if top in PACKAGES:
        return not any(part.startswith("_") for part in rest)
    return top in _trusted()[0] or _is_own(top)


@lru_cache(maxsize=64)
def _is_own(package: str) -> bool:
    """Return whether a top-level package is there and neither Python's own nor put there by an installer."""
    try:
        spec = find_spec(package) if package.isidentifier() and package not in sys.stdlib_module_names else None
    except ValueError:  # of __main__
        return False
    if spec is None:
        return False
    places = [Path(place).parent for place in spec.submodule_search_locations or filter(None, [spec.origin])]
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    own = [place for place in places if not {place.resolve(), *place.resolve().parents} & installed]
    return bool(places) and own == places and not any(next(place.glob("*.dist-info"), None) for place in own)


def _trusted() -> tuple[list[str], list[Path]]:
    """Return the packages and the folders of SNNEXP_TRUSTED, which are separated by commas."""
    items = [item.strip() for item in os.environ.get(TRUSTED, "").split(",") if item.strip()]
    folders = [Path(item).expanduser().resolve() for item in items if "/" in item or Path(item).is_dir()]
    return [item for item in items if "/" not in item], folders


def _refusal(target: object, source: str, expected: str) -> UserError:
    return UserError(
        f"{source} names {target}, which is not allowed: it must be {expected}, or your own code on PYTHONPATH. "
        + _way_out(str(target).split(".")[0])
    )


def _way_out(trusted: object) -> str:
    return f"If you trust {trusted} with your account, set {TRUSTED}={trusted} (docs/security.md)"


def _entries(config: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (full key, key, value) for all values in nested mappings and lists."""
    pairs = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in pairs:
        yield f"{prefix}{key}", str(key), value
        yield from _entries(value, f"{prefix}{key}.")
