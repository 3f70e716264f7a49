"""Commands for the user to copy: they run as printed, from any folder and with the user's own configuration files."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from snnexp.config import FOLDERS, conf_dir, quoted
from snnexp.errors import UserError
from snnexp.masking import masked
from snnexp.trial.job import VARIABLE
from snnexp.trust import TRUSTED, check_file


def command(arguments: Sequence[str], **variables: str) -> str:
    """Return `snnexp ARGUMENTS` as a line for a shell, with the folder and the environment of this process.

    `variables` are added to the environment.

    Relative paths in the configuration, and packages found by PYTHONPATH, are looked up from that folder.
    """
    own = {name: value for name, value in os.environ.items() if name == "PYTHONPATH" or name.startswith("SNNEXP_")}
    kept = [f"{k}={shlex.quote(masked(value))}" for k, value in sorted({**own, **variables}.items()) if k != VARIABLE]
    line = " ".join([*kept, shlex.join([*_program(), *masked(list(arguments))])])
    return f"(cd {shlex.quote(str(Path.cwd()))} && {line})"


def _program() -> list[str]:
    """Return the words that start this snnexp in the user's shell."""
    beside, known = Path(sys.executable).with_name("snnexp"), shutil.which("snnexp")
    if known and (not beside.exists() or beside.samefile(known)):
        return ["snnexp"]
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "snnexp.run"]


def places(overrides: Iterable[str]) -> dict[str, str]:
    """Return {key: override} of those that say where runs read and write: they stay on the command line, out of
    files."""
    keys = ((text.partition("=")[0].lstrip("+"), text) for text in overrides)
    return {key: text for key, text in keys if key in FOLDERS or key.startswith("tracking.")}


def experiment_command(config: DictConfig, folder: Path, name: str) -> str:
    """Return the command that runs FOLDER/experiment/NAME.yaml with the configuration files of this sweep.

    `config` is the config of the multirun. FOLDER comes first, so a file of the same name elsewhere does not hide it.
    """
    arguments, own = ["--config-dir", str(folder)], []
    for source in config.hydra.runtime.config_sources:
        if source.provider == "main" and Path(str(source.path)) != Path(conf_dir()):
            arguments += ["--config-path", str(source.path)]
        if source.provider == "command-line" or source.provider.startswith("hydra.searchpath"):
            own.append(f"{source.schema}://{source.path}")
    if config.hydra.job.config_name != "config":
        arguments += ["--config-name", str(config.hydra.job.config_name)]
    plain = ",".join(path if re.fullmatch(r"[\w:/.-]+", path) else quoted(path) for path in own)
    arguments += [f"hydra.searchpath=[{plain}]"] * bool(own)
    arguments += [f"experiment={name}", *places(config.hydra.overrides.task).values()]
    return command(arguments, **_trust(folder, name, config.hydra.overrides.task))


def _trust(folder: Path, name: str, overrides: Sequence[str]) -> dict[str, str]:
    """Return what lets the experiment name the packages that the command line named."""
    try:
        check_file(folder, f"experiment/{name}")
    except UserError:
        named = {found.split(".")[0] for text in overrides for found in re.findall(r"_target_[=:]\s*([\w.]+)", text)}
        if not named:
            return {}
        before = filter(None, os.environ.get(TRUSTED, "").split(","))
        return {TRUSTED: ",".join(dict.fromkeys([*before, *sorted(named)]))}
    return {}
